#!/bin/bash
# vm.sh — the live tests on real Debian kernels: qemu boots a Debian tree with its own kernel and systemd, runs them, powers off.
#   vm.sh tree SUITE…               build the image of bullseye, bookworm, trixie or sid (cached; see ../tree.sh)
#   vm.sh run LANE [-- FILTER…]     run the live tests, those of each filter in turn; LANE is a suite, bullseye-v1 (the same tree with
#                                   cgroup v1, hybrid), bullseye-legacy (v1 alone) or trixie-selinux (the same tree with SELinux and
#                                   selinux.cil in place of AppArmor)
#   vm.sh script LANE FILE          run FILE as root in it instead, with `sandbox` in the PATH (and /payload/live where SANDBOX_LIVE is set)
#   vm.sh package LANE FILE         install the Debian package FILE in it, use it, boot again, purge it (see ../package.sh)
# Needs SANDBOX_BIN and, for `run`, SANDBOX_LIVE: static binaries of the program and of its live tests.
# Exits with the status of what ran inside; 125 if that is not known, for any reason (never take silence for success).
# The base image is only read (snapshot=on). What to run comes in on a second disk, its output goes out over the second serial port
# as it is written, so that a hang shows how far it came. The console is kept in $SANDBOX_TEST_CACHE/console-LANE.log.
# No KVM by default (SANDBOX_TEST_ACCEL=kvm where it boots stock kernels); SANDBOX_TEST_VM_TIMEOUT is in seconds. qemu emulates both CPUs
# in one thread: with a thread each, a CPU can run code that the other has just patched, as the kernel does at each first and last use of
# a cgroup's feature, and the guest panics (`Oops: int3`; twice in five lanes). With several VMs at once nothing is lost by it.
set -euo pipefail
here=$(dirname "$(realpath "$0")")
# shellcheck source-path=SCRIPTDIR source=../tree.sh
. "$here/../tree.sh"

die() { echo "vm: $*" >&2; exit 125; }

suite_of() {
  case "$1" in
    bullseye | bookworm | trixie | sid) echo "$1" ;;
    bullseye-v1 | bullseye-legacy) echo bullseye ;;
    trixie-selinux) echo trixie ;;
    *) die "no lane '$1' (bullseye, bullseye-v1, bullseye-legacy, bookworm, trixie, trixie-selinux, sid)" ;;
  esac
}

promises_of() { # what the live tests may rely on; a lane that lacks one of these fails
  case "$1" in
    bullseye) echo "root systemd cgroup2 disk user_manager fuse apparmor" ;;      # 5.10: no idmapped mounts
    bullseye-v1 | bullseye-legacy) echo "root systemd cgroup1 joint_cpuacct disk user_manager fuse apparmor" ;;
    trixie-selinux) echo "root systemd cgroup2 idmap disk user_manager fuse pasta selinux" ;;
    bookworm) echo "root systemd cgroup2 idmap disk user_manager fuse pasta apparmor" ;;
    *) echo "root systemd cgroup2 idmap disk user_manager fuse pasta apparmor apparmor4" ;;
  esac
}

payload() { # payload DIR LANE: the files of the second disk, but for what it runs
  echo "$RANDOM$RANDOM$RANDOM" > "$1/nonce"
  [ -z "${SANDBOX_BIN:-}" ] || cp "$SANDBOX_BIN" "$1/sandbox"
  cat > "$1/run" << RUN
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root USER=root LANG=C.UTF-8
export SANDBOX_BIN=/usr/local/bin/sandbox SANDBOX_TEST_LANE=$2 SANDBOX_TEST_MUST_RUN=1 SANDBOX_TEST_SLOW=${SANDBOX_TEST_SLOW:-12}
export SANDBOX_TEST_PROMISES="$(promises_of "$2")" RUST_BACKTRACE=0
[ ! -e /payload/sandbox ] || cp /payload/sandbox /usr/local/bin/sandbox
systemctl is-system-running --wait > /dev/null || systemctl --failed --no-legend --plain
# The tree boots permissive (tree.sh); from here on the policy decides.
[ ! -e /sys/fs/selinux/enforce ] || echo 1 > /sys/fs/selinux/enforce
RUN
}

boot() { # boot LANE DIR [DISK]: the payload in DIR; output on stdout; with DISK, a copy of the image, what is written to it stays
  local lane=$1 dir=$2 image args=() nonce status disk=${3:-}
  # Its own process: in a function that is called with || the shell would not stop at an error.
  image=$(bash "$here/../tree.sh" image "$(suite_of "$lane")" vm) || die "no image for $lane"
  case "$lane" in
    bullseye-v1) args+=(systemd.unified_cgroup_hierarchy=0) ;;
    bullseye-legacy) args+=(systemd.unified_cgroup_hierarchy=0 systemd.legacy_systemd_cgroup_controller=1) ;;
  esac
  [ "$lane" != trixie-selinux ] || args+=(security=selinux)
  if [ -z "$disk" ]; then
    disk=file=$image,snapshot=on
  else
    # As machines boot: what is enabled is started.
    args+=(systemd.unit=multi-user.target)
    [ -e "$disk" ] || { cp --sparse=always "$image" "$disk"; args[-1]=systemd.unit=bed.target; }
    disk=file=$disk
  fi
  mke2fs -q -t ext4 -O ^has_journal -d "$dir" "$dir.img" "$(($(du -sm "$dir" | cut -f1) * 11 / 10 + 4))M" > /dev/null
  nonce=$(cat "$dir/nonce")
  rm -f "$dir/status"
  qemu "$image" "$disk" "$dir.img" "$lane" "${args[*]:-}" | report "$nonce" "$dir/status" || true
  if ! status=$(cat "$dir/status" 2> /dev/null) || [ -z "$status" ]; then
    echo "vm: $lane never reported its end; the last lines of its console:" >&2
    tail -n 15 "$tree_cache/console-$lane.log" >&2
    return 125
  fi
  return "$status"
}

qemu() { # qemu IMAGE DISK PAYLOAD LANE KERNEL-ARGS
  # It ends with us, whatever ends us.
  exec setpriv --pdeathsig TERM timeout --foreground --kill-after=5 "${SANDBOX_TEST_VM_TIMEOUT:-900}" qemu-system-x86_64 -M q35 \
    -accel "${SANDBOX_TEST_ACCEL:-tcg,thread=single}" -cpu max -smp 2 -m 2048 \
    -display none -monitor none -no-reboot -nic none -kernel "$1.vmlinuz" -initrd "$1.initrd" \
    -drive "$2,if=virtio,format=raw" -drive "file=$3,if=virtio,format=raw,readonly=on" \
    -serial "file:$tree_cache/console-$4.log" -serial stdio \
    -append "console=ttyS0 panic=-1 quiet audit=0 mitigations=off systemd.show_status=0 systemd.unit=bed.target $5" < /dev/null
}

report() { # report NONCE FILE: pass lines on as they come (mawk would wait for 4096 bytes); the one with the nonce goes to FILE
  local line
  while IFS= read -r line || [ -n "$line" ]; do
    line=${line%$'\r'}
    case "$line" in
      "vm-status $1 "*[!0-9]*) echo "$line" ;;
      "vm-status $1 "*) echo "${line##* }" > "$2" ;;
      *) echo "$line" ;;
    esac
  done
}

with_payload() { # with_payload LANE FUNCTION ARG…: FUNCTION adds to the run script
  local lane=$1 dir status=0; shift
  suite_of "$lane" > /dev/null
  command -v qemu-system-x86_64 > /dev/null || die "no qemu here: apt install qemu-system-x86"
  mkdir -p "$tree_cache"
  dir=$(mktemp -d)
  # shellcheck disable=SC2064  # expanded now, on purpose
  trap "rm -rf '$dir' '$dir.img'" EXIT
  payload "$dir" "$lane"
  "$1" "$dir" "${@:2}"
  boot "$lane" "$dir" || status=$?
  exit "$status"
}

package() { # package LANE FILE: two boots of one disk
  local lane=$1 file=$2 dir step status=0
  [ -e "$file" ] || die "$file: no such package"
  suite_of "$lane" > /dev/null
  mkdir -p "$tree_cache"
  dir=$(mktemp -d "$tree_cache/package-XXXXXX")
  # shellcheck disable=SC2064  # expanded now, on purpose
  trap "rm -rf '$dir'" EXIT
  for step in _boot1 _boot2; do
    mkdir "$dir/$step"
    SANDBOX_BIN='' payload "$dir/$step" "$lane"
    cp "$here/../package.sh" "$dir/$step/package.sh"
    cp "$file" "$dir/$step/sandbox.deb"
    echo "exec bash /payload/package.sh $step /payload/sandbox.deb" >> "$dir/$step/run"
    boot "$lane" "$dir/$step" "$dir/disk" || { status=$?; break; }
  done
  exit "$status"
}

add_live() { # add_live DIR FILTER…
  local dir=$1; shift
  [ -x "${SANDBOX_LIVE:-}" ] || die "SANDBOX_LIVE is not the live-test binary"
  cp "$SANDBOX_LIVE" "$dir/live"
  [ $# -gt 0 ] || set -- ''
  printf '/payload/live --color=never --test-threads=2 %q || status=1\n' "$@" >> "$dir/run"
  # shellcheck disable=SC2016  # for the shell in there
  echo 'exit ${status:-0}' >> "$dir/run"
}

add_script() { # add_script DIR FILE
  [ -z "${SANDBOX_LIVE:-}" ] || cp "$SANDBOX_LIVE" "$1/live"
  cat "$2" >> "$1/run"
}

case "${1:-}" in
  tree) shift; for suite; do bash "$here/../tree.sh" image "$(suite_of "$suite")" vm; done ;;
  run)
    lane=${2:?LANE}; shift 2; [ "${1:-}" != -- ] || shift
    with_payload "$lane" add_live "$@" ;;
  package) package "${2:?LANE}" "${3:?FILE}" ;;
  script) with_payload "${2:?LANE}" add_script "${3:?FILE}" ;;
  *) sed -n '2,9p' "$0"; exit 125 ;;
esac
