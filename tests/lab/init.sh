#!/bin/bash
# init.sh NAME IMAGE|cow [DIR…] — the inside of a lab: lab.sh starts it in new namespaces; it makes the root and becomes systemd.
set -eu
name=$1 image=$2; shift 2
base=/run/lab-$name
# shellcheck source-path=SCRIPTDIR source=../tree.sh
. "$(dirname "$(realpath "$0")")/../tree.sh"

make_root() { # leaves the new root at $base/mnt/root
  local mnt=$base/mnt copy
  mkdir -p "$mnt"; mount -t tmpfs -o mode=755 lab "$mnt"
  mkdir "$mnt"/{up,work,root}
  if [ "$image" = cow ]; then
    mount -t overlay overlay -o "lowerdir=/,upperdir=$mnt/up,workdir=$mnt/work" "$mnt/root"
    tree_prepare "$mnt/root"
  else
    # The copy is unlinked as soon as it is mounted: whatever ends the lab, the kernel gives back loop device and disk space.
    copy=$tree_cache/lab-$name.img
    cp --reflink=auto --sparse=always "$image" "$copy"
    mount -o loop,noatime "$copy" "$mnt/root"
    rm "$copy"
  fi
}

mount_cgroups() { # the same hierarchies as outside; the cgroup namespace makes ours their roots
  local lines line ctrl part
  if [ ! -d /sys/fs/cgroup/unified ] && [ -e /sys/fs/cgroup/cgroup.procs ]; then
    mount -t cgroup2 cgroup2 sys/fs/cgroup
    return
  fi
  mount -t tmpfs -o mode=755 tmpfs sys/fs/cgroup
  mapfile -t lines < /proc/self/cgroup
  for line in "${lines[@]}"; do
    IFS=: read -r _ ctrl _ <<< "$line"
    case "$ctrl" in
      "") mkdir sys/fs/cgroup/unified; mount -t cgroup2 cgroup2 sys/fs/cgroup/unified ;;
      name=*) mkdir "sys/fs/cgroup/${ctrl#name=}"; mount -t cgroup -o "none,$ctrl" cgroup "sys/fs/cgroup/${ctrl#name=}" ;;
      *)
        mkdir "sys/fs/cgroup/$ctrl"; mount -t cgroup -o "$ctrl" cgroup "sys/fs/cgroup/$ctrl"
        for part in ${ctrl//,/ }; do [ "$part" = "$ctrl" ] || ln -s "$ctrl" "sys/fs/cgroup/$part"; done ;;
    esac
  done
}

make_dev() { # own nodes, so that a mode changed in the lab is not changed outside
  local node
  mount -t tmpfs -o mode=755 tmpfs dev
  touch dev/console; mount --bind "$base/console" dev/console
  mkdir dev/pts dev/shm dev/net dev/mqueue
  for node in null:1:3 zero:1:5 full:1:7 random:1:8 urandom:1:9 tty:5:0 kmsg:1:11 fuse:10:229 net/tun:10:200; do
    IFS=: read -r node major minor <<< "$node"
    [ -e "/dev/$node" ] || continue
    mknod -m 666 "dev/$node" c "$major" "$minor" || { touch "dev/$node"; mount --bind "/dev/$node" "dev/$node"; }
  done
  [ ! -e dev/kmsg ] || chmod 644 dev/kmsg
  mount -t devpts -o newinstance,ptmxmode=666,mode=620,gid=5 devpts dev/pts; ln -s pts/ptmx dev/ptmx
  mount -t tmpfs -o mode=1777 tmpfs dev/shm
  ln -s /proc/self/fd dev/fd
  ln -s /proc/self/fd/0 dev/stdin; ln -s /proc/self/fd/1 dev/stdout; ln -s /proc/self/fd/2 dev/stderr
}

mount --make-rprivate /
read -r host_pid _ < /proc/self/stat    # /proc is still the machine's: our pid as it sees us
make_root
cd "$base/mnt/root"
mount -t proc -o nosuid,nodev,noexec proc proc
mount -t sysfs -o nosuid,nodev,noexec sysfs sys
mount_cgroups
make_dev
mount -t tmpfs -o mode=755,nosuid,nodev tmpfs run
mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs tmp
for dir; do mkdir -p ".$dir"; mount --bind "$dir" ".$dir"; done
ip link set lo up
hostname lab
echo "$host_pid" > "$base/pid.new"; mv "$base/pid.new" "$base/pid"
for _ in $(seq 500); do [ ! -e "$base/go" ] || break; sleep 0.01; done
mkdir -p mnt; pivot_root . mnt; umount -l mnt
exec env -i container=lab PATH=/usr/sbin:/usr/bin:/sbin:/bin \
  /lib/systemd/systemd --log-target=console --show-status=false --unit=bed.target
