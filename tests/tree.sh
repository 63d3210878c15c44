#!/bin/bash
# The Debian trees that the test beds boot.
#   tree.sh tarball SUITE…          build, or find in the cache, and print the path
#   tree.sh image SUITE vm|lab      the same for a bootable image of it
# lab/ and vm/ source it for the rest.
#
# Two steps, each cached by a key that hashes what goes into it, each written under a temporary name and then renamed, so
# that an interrupted run leaves nothing that looks finished:
#   tree_tarball SUITE        mmdebstrap over the network, 25 to 130 s
#   tree_image SUITE vm|lab   the tarball made ready (user, masks, test service) as an ext4 image, about 10 s, no network
set -euo pipefail
tree_cache=${SANDBOX_TEST_CACHE:-/var/cache/sandbox-test}
tree_self=$(realpath "${BASH_SOURCE[0]}")

tree_packages() {
  echo "systemd systemd-sysv dbus udev libpam-systemd dbus-user-session uidmap python3-minimal procps busybox-static \
    iproute2 kmod util-linux e2fsprogs linux-image-cloud-amd64 apparmor"
  # For --network pasta; bullseye has none.
  [ "$1" = bullseye ] || echo "passt"
  # The lane with SELinux compiles its policy (vm/selinux.cil).
  [ "$1" != trixie ] || echo "secilc"
  # The lab is a bookworm tree, and the benchmark's peers run in it.
  [ "$1" != bookworm ] || echo "bubblewrap crun hyperfine strace man-db"
}

# What a test does not need and what costs seconds under emulation, or would reach out of the lab to the real kernel
# (udev's coldplug, sysctl, module loading).
tree_masks="systemd-udevd.service systemd-udev-trigger.service systemd-udev-settle.service systemd-udevd-control.socket \
  systemd-udevd-kernel.socket systemd-udevd-varlink.socket systemd-sysctl.service systemd-modules-load.service systemd-random-seed.service \
  systemd-remount-fs.service systemd-binfmt.service systemd-hwdb-update.service systemd-firstboot.service \
  systemd-journal-catalog-update.service systemd-journal-flush.service systemd-update-done.service ldconfig.service \
  systemd-pstore.service systemd-timesyncd.service systemd-sysusers.service systemd-boot-system-token.service \
  systemd-boot-random-seed.service systemd-update-utmp.service systemd-update-utmp-runlevel.service \
  systemd-machine-id-commit.service systemd-network-generator.service systemd-networkd.service systemd-tpm2-setup.service \
  systemd-tpm2-setup-early.service systemd-pcrmachine.service systemd-pcrphase-sysinit.service systemd-hibernate-clear.service \
  keyboard-setup.service console-setup.service modprobe@.service e2scrub_reap.service \
  proc-sys-fs-binfmt_misc.automount proc-sys-fs-binfmt_misc.mount dev-hugepages.mount dev-mqueue.mount \
  sys-kernel-debug.mount sys-kernel-tracing.mount sys-kernel-config.mount getty.target getty@.service \
  serial-getty@.service console-getty.service systemd-ask-password-wall.path systemd-ask-password-console.path \
  apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer fstrim.timer man-db.timer \
  systemd-tmpfiles-clean.timer"

tree_key() { # tree_key SUITE tarball|image
  case "$2" in
    tarball) { echo "$1"; tree_packages "$1"; declare -f tree_bootstrap; } ;;
    *) { tree_key "$1" tarball; cat "$tree_self" "$(dirname "$tree_self")"/vm/{initramfs.sh,selinux.cil}; } ;;
  esac | sha256sum | cut -c1-12
}

tree_bootstrap() { # tree_bootstrap SUITE OUT.tar
  local opts=()
  # Outside the stable suites the index may be older than its own Valid-Until.
  [ "$1" != sid ] || opts+=(--aptopt='Acquire::Check-Valid-Until "false"')
  # No security archive: it drops a version as soon as there is a newer one, which ends builds with a 404.
  # We make our own initramfs: Debian's takes as long to build as half of the tree, and seconds to unpack at each boot.
  # shellcheck disable=SC2016  # $1 is for mmdebstrap's shell
  mmdebstrap --quiet --variant=minbase --include="$(tree_packages "$1" | tr -s ' \n' ,)" "${opts[@]}" \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' \
    --setup-hook='sed -i /security/d "$1/etc/apt/sources.list"' \
    --essential-hook='chroot "$1" dpkg-divert --quiet --local --rename --add /usr/sbin/update-initramfs' \
    --essential-hook='ln -s /bin/true "$1/usr/sbin/update-initramfs"' \
    --customize-hook='rm -rf "$1"/var/lib/apt/lists/* "$1"/var/cache/apt/*.bin' "$1" "$2"
}

tree_forget() { # tree_forget PATTERN: what nobody used for a day; another checkout may use an older one right now
  find "$tree_cache/trees" -maxdepth 1 -name "$1" -mtime +0 -delete
}

tree_tarball() { # prints the path of the finished tarball of SUITE
  local out
  mkdir -p "$tree_cache/trees"
  out=$tree_cache/trees/$1-$(tree_key "$1" tarball).tar
  ( flock 9
    if [ ! -e "$out" ]; then
      echo "building the $1 tree" >&2
      tree_forget "$1"'-????????????.tar'
      rm -rf "$tree_cache/trees/.$1.tmp.tar"
      tree_bootstrap "$1" "$tree_cache/trees/.$1.tmp.tar" >&2
      mv "$tree_cache/trees/.$1.tmp.tar" "$out"
    fi
  ) 9> "$tree_cache/trees/.$1.lock"
  echo "$out"
}

tree_image() { # tree_image SUITE vm|lab: prints IMAGE; beside it lie IMAGE.vmlinuz and IMAGE.initrd (vm only)
  local out tar tmp
  tar=$(tree_tarball "$1")
  out=$tree_cache/trees/$1-$2-$(tree_key "$1" image).img
  ( flock 9
    if [ -e "$out" ]; then touch "$out"*; exit 0; fi
    echo "building the $1 $2 image" >&2
    tree_forget "$1-$2-*"
    rm -rf "$tree_cache/trees/.$1-$2".??????
    tmp=$(mktemp -d "$tree_cache/trees/.$1-$2.XXXXXX")
    trap 'rm -rf "$tmp"' EXIT
    mkdir "$tmp/root"
    tar -xf "$tar" -C "$tmp/root" --numeric-owner
    tree_prepare "$tmp/root"
    if [ "$2" = vm ]; then
      bash "$(dirname "$tree_self")/vm/initramfs.sh" "$tmp/root" "$out.vmlinuz" "$out.initrd"
      rm -rf "$tmp"/root/boot/*
    else
      rm -rf "$tmp"/root/boot/* "$tmp"/root/usr/lib/modules/*
    fi
    # No journal: nobody needs these file systems after a crash.
    mke2fs -q -t ext4 -O ^has_journal -d "$tmp/root" "$tmp/img" 2500M > /dev/null
    mv "$tmp/img" "$out"
  ) 9> "$tree_cache/trees/.$1-$2.lock"
  echo "$out"
}

tree_prepare() { # tree_prepare ROOT: the same for a tree on disk and for the lab's copy-on-write view of a machine
  local root=$1 unit
  echo 4f8e9a0c31c94a1e9d0a7f0b5f2f6c11 > "$root/etc/machine-id"   # known: no first-boot work
  for unit in $tree_masks; do
    ln -sf /dev/null "$root/etc/systemd/system/$unit"
  done
  tree_tester "$root"
  mkdir -p "$root/var/lib/systemd/linger" "$root/etc/systemd/journald.conf.d" "$root/payload"
  touch "$root/var/lib/systemd/linger/tester"
  echo bed > "$root/etc/hostname"
  : > "$root/etc/fstab"                                            # a cow view must not mount the machine's disks
  echo 'z /dev/fuse 0666' > "$root/etc/tmpfiles.d/fuse.conf"        # as udev does it, which is masked
  printf '[Journal]\nStorage=volatile\n' > "$root/etc/systemd/journald.conf.d/bed.conf"
  # Without --remove: at boot it empties /tmp, and through a directory bound into a lab's /tmp, or as it, the machine's own.
  mkdir -p "$root/etc/systemd/system/systemd-tmpfiles-setup.service.d"
  printf '[Service]\nExecStart=\nExecStart=systemd-tmpfiles --create --boot --exclude-prefix=/dev\n' \
    > "$root/etc/systemd/system/systemd-tmpfiles-setup.service.d/bed.conf"
  printf '[Unit]\nDescription=Test bed\nRequires=basic.target\nAfter=basic.target\nAllowIsolate=yes\n%s\n' \
    'Wants=dbus.service systemd-logind.service user@1000.service systemd-user-sessions.service' \
    > "$root/etc/systemd/system/bed.target"
  tree_vm_service "$root"
  [ ! -e "$root/usr/bin/secilc" ] || tree_selinux "$root"
}

# A policy for the boots with SELinux; the others do not look at it. Permissive until the lane has booted: the user's session would
# need the tables that a distribution's policy brings.
tree_selinux() {
  local place=etc/selinux/bed
  mkdir -p "$1/$place/policy" "$1/$place/contexts/files"
  printf 'SELINUX=permissive\nSELINUXTYPE=bed\n' > "$1/etc/selinux/config"
  echo '/.* system_u:object_r:file_t:s0' > "$1/$place/contexts/files/file_contexts"
  echo '<busconfig><selinux/></busconfig>' > "$1/$place/contexts/dbus_contexts"   # dbus-daemon does not start without
  cp "$(dirname "$tree_self")/vm/selinux.cil" "$1/$place/policy.cil"
  # Its version is that of Linux 5.8, which newer ones read as well.
  chroot "$1" secilc -c 33 -o "/$place/policy/policy.33" -f /dev/null "/$place/policy.cil"
}

tree_tester() { # the user of all rootless tests, with a subordinate range
  local root=$1
  grep -q '^tester:' "$root/etc/passwd" && return
  if grep -q '^[^:]*:[^:]*:1000:' "$root/etc/passwd"; then
    sed -i '/^[^:]*:[^:]*:1000:/d' "$root/etc/passwd"   # only a cow view of a machine has one; the machine keeps its own
  fi
  echo 'tester:x:1000:1000::/home/tester:/bin/bash' >> "$root/etc/passwd"
  grep -q '^[^:]*:[^:]*:1000:' "$root/etc/group" || echo 'tester:x:1000:' >> "$root/etc/group"
  # '*', not '!': a locked account may not have a user manager.
  echo 'tester:*:19000:0:99999:7:::' >> "$root/etc/shadow"
  echo 'tester:231072:65536' > "$root/etc/subuid"
  echo 'tester:231072:65536' > "$root/etc/subgid"
  mkdir -p "$root/home/tester"
  chown 1000:1000 "$root/home/tester"
}

# In a VM the payload disk brings /payload/run. Its output goes to the second serial port as it comes; the last line,
# with the nonce that only this run knows, is the proof that it came to its end.
tree_vm_service() {
  install -D -m755 /dev/stdin "$1/usr/local/sbin/vm-payload" << 'RUN'
#!/bin/bash
exec > /dev/ttyS1 2>&1 < /dev/null
stty -F /dev/ttyS1 raw -echo
mount -o ro /dev/vdb /payload
status=0
(cd / && exec bash /payload/run) || status=$?
echo "vm-status $(cat /payload/nonce) $status"
exec > /dev/null 2>&1      # closing the port drains it
exec systemctl poweroff -ff
RUN
  # Type=exec, not oneshot: else the boot itself would last as long as the tests, and the system be "starting".
  cat > "$1/etc/systemd/system/vm-payload.service" << 'UNIT'
[Unit]
ConditionVirtualization=vm
After=bed.target
[Service]
Type=exec
ExecStart=/usr/local/sbin/vm-payload
[Install]
WantedBy=bed.target
UNIT
  mkdir -p "$1/etc/systemd/system/bed.target.wants"
  ln -sf ../vm-payload.service "$1/etc/systemd/system/bed.target.wants/vm-payload.service"
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
  shopt -s inherit_errexit   # a failure in $(…) is one too
  case "${1:-}" in
    tarball) shift; for suite; do tree_tarball "$suite"; done ;;
    image) tree_image "${2:?SUITE}" "${3:?vm or lab}" ;;
    *) sed -n '2,5p' "$0"; exit 125 ;;
  esac
fi
