#!/bin/bash
# crash.sh — killed, or failed, at every system call: what is left? In the tree lab; as root.
#   tests/crash.sh [STRIDE [SCENARIO…]]   STRIDE 1, every system call, is the default and takes some 12 minutes
# Scenarios: start, start-tree (the launcher and all that it makes), detach, exec, stop, import, commit, apply, gc.
# strace(1) kills the program at its Nth system call, for every N that an undisturbed run has; then makes the Nth fail, with EIO, ENOSPC,
# ENOMEM, EPERM and EINTR in turn. After each: no process, unit, mount or cgroup of it is left within the seconds that systemd needs, the
# next command works, the store verifies, the host's files are as they were, and what was printed on a failure is one line (and a hint).
# Prints one line a scenario, and at the end `kills tried: K, failures tried: F, things left: L`. Exit status 1 unless L is 0.
# SANDBOX_BIN names the program; else the release build is made.
set -euo pipefail
all_scenarios="start start-tree detach exec stop import commit apply gc"
errors=(EIO ENOSPC ENOMEM EPERM EINTR)

die() { echo "crash.sh: $*" >&2; exit 125; }

outside() { # outside [STRIDE [SCENARIO…]]
  local here
  here=$(dirname "$(realpath "$0")")
  cd "$here/.."
  # shellcheck source-path=SCRIPTDIR source=lab/staged.sh
  . "$here/lab/staged.sh"
  parse_counted 2,9 "$all_scenarios" 1 "$@"
  SANDBOX_LOG='' run_staged "$here/crash.sh" "$number" "${chosen[@]}"
}

# --- scenarios: set_up once, `words` is the command, `settle` brings the state back that the next round starts from -------------------

set_up() { # set_up SCENARIO
  words=() follow=() before=true after=true
  case "$1" in
    start) words=(run --unit=crash -m 64M -- true) ;;
    start-tree) words=(run --unit=crash -m 64M -- true); follow=(-f) ;;
    detach) words=(run --detach --unit=crash -m 64M -- sleep 0.1) ;;
    exec) before=one_lives after=it_ends; words=(exec crash true) ;;
    stop) before=one_lives after=it_ends; words=(stop crash) ;;
    import) make_image; words=(image import --quiet --tag crash:1 "$work/image.tar"); after=store_verifies ;;
    commit) make_image; keep_one --image crash:1; words=(commit kept crash:2 --quiet); after=store_verifies ;;
    apply) make_host_changes; before=change_host words=(apply kept --yes); after=host_is_one_of_both ;;
    gc) make_image; before=import_again; words=(image gc --quiet); after=store_verifies ;;
    *) die "no scenario $1 ($all_scenarios)" ;;
  esac
}

one_lives() {
  sandbox run --detach --unit=crash -- sleep 1000 > /dev/null 2>&1 || { systemctl reset-failed crash.service; sandbox run --detach --unit=crash -- sleep 1000 > /dev/null; }
}

it_ends() { ! systemctl is-active --quiet crash.service || sandbox stop crash > /dev/null; }

make_image() {
  mkdir -p "$work/root/bin" "$work/root/srv"
  cp /bin/busybox "$work/root/bin/busybox"
  ln -sf busybox "$work/root/bin/sh"
  echo content > "$work/root/srv/file"
  tar -C "$work/root" -cf "$work/image.tar" .
  sandbox image import --quiet --tag crash:1 "$work/image.tar" > /dev/null
}

import_again() { sandbox image import --quiet --tag crash:1 "$work/image.tar" > /dev/null; sandbox image rm crash:1 > /dev/null; }

store_verifies() { sandbox image verify --quiet > /dev/null || left "the store does not verify: $(sandbox image verify 2>&1 | tail -n 3)"; }

keep_one() { # keep_one FLAG…: a kept root called `kept`, with a change
  sandbox discard kept > /dev/null 2>&1 || true
  sandbox run --name kept --keep "$@" -- sh -c 'echo changed > /srv/file; echo new > /srv/new' 2> /dev/null
}

make_host_changes() { mkdir -p /srv; }

change_host() { rm -f /srv/new; echo content > /srv/file; keep_one; }

host_is_one_of_both() {
  local file
  case "$(cat /srv/file)" in content | changed) ;; *) left "/srv/file has: $(cat /srv/file)" ;; esac
  [ ! -e /srv/new ] || [ "$(cat /srv/new)" = new ] || left "/srv/new has: $(cat /srv/new)"
  sandbox apply kept --yes > /dev/null 2>&1 || left "apply does not work afterwards: $(sandbox apply kept --yes 2>&1)"
  [ "$(cat /srv/file /srv/new)" = $'changed\nnew' ] || left "a second apply did not finish it"
  for file in /srv/.[!.]*; do [ ! -e "$file" ] || left "$file is left"; done
}

# --- what may be left ----------------------------------------------------------------------------------------------------------------

left() { things=$((things + 1)); echo "LEFT by $what: $*"; }

mounts() { sed 's/^[^ ]* [^ ]* //' /proc/1/mountinfo | sort; }

leftovers() { # one line for each process, unit and cgroup of a sandbox
  pgrep -x sandbox -l || true
  systemctl list-units --all --plain --no-legend 'crash*' || true
  find /sys/fs/cgroup -type d -name 'crash*' 2> /dev/null || true
}

check() { # nothing of it is left, in the time that systemd has for its own
  local found try
  for try in $(seq 50); do
    found=$(leftovers)
    [ -n "$found" ] || break
    # A failed detached service stays visible, as it should.
    systemctl reset-failed 'crash*' 2> /dev/null || true
    [ "$try" = 1 ] || sleep 0.1
  done
  [ -z "$found" ] || { left "$found"; systemctl kill -s KILL 'crash*' 2> /dev/null || true; systemctl stop 'crash*' || true; sleep 0.2; }
  [ "$(mounts)" = "$mounts_before" ] || { left "mounts: $(diff <(echo "$mounts_before") <(mounts))"; mounts_before=$(mounts); }
  found=$(sandbox ps -a -q 2>&1)
  [ -z "$found" ] || left "ps shows $found"
}

one_line() { # one_line FILE: an error is one line, with perhaps a hint; warnings have lines of their own
  local lines
  lines=$(grep -cv -e '^sandbox: warning: ' -e '^hint: ' "$1" || true)
  [ "$lines" -le 1 ] || left "$lines lines of error: $(cat "$1")"
}

# --- the rounds ------------------------------------------------------------------------------------------------------------------

calls() { # how many system calls an undisturbed run has: those of the process that has most
  $before
  strace "${follow[@]}" -o "$work/trace" sandbox "${words[@]}" > /dev/null 2>&1 || die "$scenario does not work: $(sandbox "${words[@]}" 2>&1)"
  $after
  if [ ${#follow[@]} = 0 ]; then wc -l < "$work/trace"; else awk '{ n[$1]++ } END { for (p in n) if (n[p] > most) most = n[p]; print most }' "$work/trace"; fi
}

round() { # round INJECTION
  what="$scenario, $1"
  $before
  # The shell would tell of each kill.
  { timeout -k 5 60 strace "${follow[@]}" -o /dev/null -e "inject=all:$1" sandbox "${words[@]}" > /dev/null 2> "$work/said" < /dev/null ||
    true; } 2> /dev/null
  one_line "$work/said"
  $after
  check
}

rounds() { # rounds SCENARIO STRIDE
  local total n start=$SECONDS things_before=$things
  scenario=$1
  set_up "$scenario"
  total=$(calls)
  mounts_before=$(mounts)
  for n in $(seq 1 "$2" "$total"); do
    round "signal=KILL:when=$n"
    kills=$((kills + 1))
    round "error=${errors[n / $2 % ${#errors[@]}]}:when=$n"
    failures=$((failures + 1))
  done
  echo "$scenario: $total system calls, every ${2}th killed and failed, $((things - things_before)) things left, $((SECONDS - start)) s"
}

inside() { # inside STAGE STRIDE SCENARIO…
  local stage=$1 stride=$2 scenario
  shift 2
  install -m755 "$stage/sandbox" /usr/local/bin/sandbox
  command -v strace > /dev/null || die "no strace in this lab"
  work=$(mktemp -d /var/tmp/crash-XXXXXX) kills=0 failures=0 things=0 what=start
  for scenario; do rounds "$scenario" "$stride"; done
  echo "kills tried: $kills, failures tried: $failures, things left: $things"
  [ "$things" = 0 ]
}

case "${1:-}" in inside) inside "${@:2}" ;; *) outside "$@" ;; esac
