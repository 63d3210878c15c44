#!/bin/bash
# quickstart.sh — see `sandbox run` through systemd's own eyes; as root.
#
# It installs what is missing (apt; Rust with rustup where apt's is too old), builds the release binary, starts `top` in a
# sandbox with two limits, and shows each thing that systemd and the kernel know about it. Every step is checked: the first
# one that does not show what it must ends the script with status 1. Where systemd does not run the machine, all this happens
# in the lab (tests/lab/lab.sh): a real systemd in namespaces of its own. Nothing is left at the end but what was installed
# and ./target; ^C cleans up as well.
set -euo pipefail

slice=test unit=toptest
step=0

heading() {
  step=$((step + 1))
  printf '\n=== %d. %s\n' "$step" "$*"
}

say() { printf '    %s\n' "$*"; }

die() { echo "quickstart: $*" >&2; exit 125; }

fail() { echo "quickstart: step $step did not show what it must: $*" >&2; exit 1; }

run() { # run COMMAND-LINE: prints it, and does it
  printf '$ %s\n' "$1"
  eval "$1"
}

see() { # see COMMAND-LINE PATTERN…: prints it, does it, and wants a line with each pattern
  local text status=0 pattern
  printf '$ %s\n' "$1"
  text=$(eval "$1") || status=$?
  printf '%s\n' "$text"
  [ "$status" = 0 ] || fail "it ended with $status"
  shift
  for pattern; do
    grep -Eq -- "$pattern" <<< "$text" || fail "no line with '$pattern'"
  done
}

# --- outside: packages, binary, and where the steps are made ---------------------------------------------------------------

install_missing() { # install_missing PACKAGE…
  local package missing=()
  command -v apt-get > /dev/null || { can_do_without_apt "$@"; return; }
  for package; do
    dpkg-query -W -f '${db:Status-Status}\n' "$package" 2> /dev/null | grep -qx installed || missing+=("$package")
  done
  [ ${#missing[@]} -gt 0 ] || { say "nothing is missing"; return 0; }
  run "apt-get -qq update"
  run "DEBIAN_FRONTEND=noninteractive apt-get -qq -y install --no-install-recommends ${missing[*]} < /dev/null > /dev/null"
}

can_do_without_apt() { # elsewhere the programs have to be there
  local program missing=()
  for program in cc systemctl systemd-cgls top unshare nsenter; do
    command -v "$program" > /dev/null || missing+=("$program")
  done
  [ ${#missing[@]} -eq 0 ] ||
    die "no apt-get here, and ${missing[*]} missing: install what Debian calls $*, then run this again"
  say "no apt-get here, but the programs are"
}

build() { # sets $binary
  local target
  find_cargo
  install_musl
  target=$(program_target)
  binary=${CARGO_TARGET_DIR:-$PWD/target}/$target/release/sandbox
  printf '$ %s\n' "RUSTFLAGS='$static_flags' cargo build --release --target $target"
  RUSTFLAGS=$static_flags as_owner cargo build --release --target "$target"
  [ -x "$binary" ] || fail "there is no $binary"
}

outside() {
  local here status=0 lab=()
  here=$(realpath "$0")
  cd "$(dirname "$here")/.."
  # shellcheck source-path=SCRIPTDIR source=../tests/rust.sh
  . tests/rust.sh
  [ "$(id -u)" = 0 ] || die "needs root: sudo examples/quickstart.sh"
  heading "Install what is missing"
  [ -d /run/systemd/system ] || lab=(libpam-systemd dbus-user-session iproute2 e2fsprogs)
  install_missing gcc libc6-dev systemd dbus procps util-linux "${lab[@]}"
  heading "Build the program: one static file"
  build
  scratch=$(mktemp -d)
  trap 'rm -rf "$scratch"' EXIT
  if [ -d /run/systemd/system ]; then
    PATH=$(dirname "$binary"):$PATH bash "$here" _steps "$step" "$scratch" || status=$?
  else
    heading "Boot a systemd, since none runs this machine"
    say "PID 1 here is $(cat /proc/1/comm). So all that follows happens in the lab, a real systemd as PID 1 of new"
    say "namespaces, on a copy-on-write view of this machine's files. It goes when this script ends."
    cp "$binary" "$here" "$scratch"
    printf '$ %s\n' "tests/lab/lab.sh run -- …"
    # The program goes in by standard input: whatever file system the checkout is on, nothing has to be mounted.
    tar -c -C "$scratch" sandbox quickstart.sh | bash tests/lab/lab.sh run -- \
      sh -c "tar -x -C /usr/local/bin && exec bash /usr/local/bin/quickstart.sh _steps $step /tmp < /dev/null" || status=$?
  fi
  [ "$status" -eq 0 ] || exit "$status"
  printf '\nEvery step showed what it must. Next: README.md, %s run --help\n' "$binary"
}

# --- the steps ----------------------------------------------------------------------------------------------------------------

launcher='' had_slice=''   # had_slice: somebody else uses the slice, so it stays
stop_all() {
  if [ -n "$launcher" ] && kill -0 "$launcher" 2> /dev/null; then
    kill -TERM "$launcher" 2> /dev/null || true
    wait "$launcher" 2> /dev/null || true
  fi
  [ -n "$had_slice" ] || systemctl stop $slice.slice 2> /dev/null || true
}

within() { # within SECONDS COMMAND…: until it succeeds
  local end=$((SECONDS + $1)); shift
  while ! "$@" 2> /dev/null; do
    [ "$SECONDS" -lt "$end" ] || return 1
    sleep 0.05
  done
}

property() { systemctl show --property "$1" --value "$unit.scope"; }

is_active() { [ "$(property ActiveState)" = active ]; }

is_gone() { [ "$(property LoadState)" = not-found ]; }

top_pid() { # the process top of the unit, whatever other top runs on this machine
  local path pid
  path=$(property ControlGroup)
  while read -r pid; do
    if [ "$(cat "/proc/$pid/comm")" = top ]; then echo "$pid"; return; fi
  done < <(cat "/sys/fs/cgroup$path/cgroup.procs" "/sys/fs/cgroup/systemd$path/cgroup.procs" 2> /dev/null)
  return 1
}

limit_files() { # sets $cpu $memory $quota, the files' paths, and what is in them with the first limits
  local path
  path=$(property ControlGroup)
  if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
    cpu=/sys/fs/cgroup$path/cpu.weight memory=/sys/fs/cgroup$path/memory.max quota=/sys/fs/cgroup$path/cpu.max
    cpu_value=58 quota_value="20000 100000"
    say "cgroup v2 counts CPU weight from 100, not from 1024: 600 shares are the weight 58."
  else
    cpu=/sys/fs/cgroup/cpu$path/cpu.shares memory=/sys/fs/cgroup/memory$path/memory.limit_in_bytes
    quota=/sys/fs/cgroup/cpu$path/cpu.cfs_quota_us
    cpu_value=600 quota_value=20000
  fi
}

must_hold() { # must_hold FILE VALUE
  [ "$(cat "$1")" = "$2" ] || fail "$1 holds $(cat "$1"), not $2"
}

start() {
  local top=$1/top.txt
  if [ "$(systemctl is-active $slice.slice)" = active ]; then had_slice=yes; fi
  is_gone || die "$unit.scope is there already; if nobody needs it: systemctl stop $unit.scope"
  heading "Start top in a sandbox: unit $unit.scope, slice $slice.slice, two limits"
  trap stop_all EXIT
  trap 'exit 130' INT TERM
  run "sandbox run --slice=$slice --unit=$unit -p CPUShares=600 -p MemoryMax=500M -- top -b > $top < /dev/null & launcher=\$!"
  within 10 is_active || fail "$unit.scope did not become active"
  within 10 test -s "$top" || fail "top printed nothing"
}

look() {
  local pid
  heading "The control group tree: the slice, the scope in it, the processes in that"
  see "systemd-cgls --no-pager --unit $slice.slice" "$unit\.scope" "top -b"
  heading "The unit's status"
  see "systemctl status --no-pager --lines=0 $unit.scope" "Active: active \(running\)" "/$slice\.slice/$unit\.scope"
  heading "The control groups of the process, as the kernel tells"
  pid=$(top_pid) || fail "no process top is in the unit"
  see "cat /proc/$pid/cgroup" "^(0:|[0-9]+:memory):/$slice\.slice/$unit\.scope\$"
}

limits() {
  heading "The limits in force, in the kernel's own files"
  limit_files
  run "grep . $cpu $memory"
  must_hold "$cpu" "$cpu_value"
  must_hold "$memory" $((500 << 20))

  heading "A change while it runs"
  run "systemctl set-property --runtime $unit.scope CPUQuota=20% MemoryMax=250M"
  run "grep . $quota $memory"
  must_hold "$quota" "$quota_value"
  must_hold "$memory" $((250 << 20))
}

inside() {
  local outside
  outside=$(find /proc -maxdepth 1 -name '[0-9]*' | wc -l)
  heading "What top sees inside: itself and the init above it, none of the $outside processes out here"
  see "head -n 9 $1/top.txt" "^Tasks: +2 total" "^ +1 .* sandbox" " top *\$"
}

stop() {
  local status=0 cgroup
  cgroup=$(property ControlGroup)
  heading "Stop it, and see that nothing is left"
  run "systemctl stop $unit.scope"
  wait "$launcher" || status=$?
  launcher=
  say "sandbox run ended with the status of its command: $status. (top ends with 0 when it is told to stop; what does not"
  say "catch SIGTERM gives 128 + 15.)"
  case "$status" in 0 | 143) ;; *) fail "the exit status is $status" ;; esac
  within 5 is_gone || fail "$unit.scope is still there"
  if [ -z "$had_slice" ]; then
    say "The slice is systemd's, and stays until it is stopped, empty: limits for all in it can be set on it."
    run "systemctl stop $slice.slice"
    cgroup=${cgroup%/*}
  fi
  run "systemctl list-units --all --no-pager --no-legend '$unit*' $slice.slice"
  run "find /sys/fs/cgroup -path '*$cgroup*'"
  [ -z "$(find /sys/fs/cgroup -path "*$cgroup*")" ] || fail "its control group is still there"
  say "No unit, no control group, no process. Its mounts were in its own namespace, and went with it."
}

steps() { # steps NUMBER-OF-THE-LAST-STEP DIRECTORY
  step=$1
  heading "Has this machine what sandboxes need?"
  run "sandbox doctor" || fail "something is missing, see above"
  start "$2"
  look
  limits
  inside "$2"
  stop
}

case "${1:-}" in
  "") outside ;;
  _steps) steps "$2" "$3" ;;
  *) sed -n '2,8p' "$0"; exit 125 ;;
esac
