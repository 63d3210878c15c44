#!/bin/bash
# crash.sh — killed, or failed, at every system call: what is left? In the tree lab; as root.
#   tests/crash.sh [STRIDE [SCENARIO…]]   STRIDE 1, every system call, is the default and takes an hour or two; errors: one a call, in turn,
#                                         and with CRASH_ERRORS=all each of the five at each call
# Scenarios: start (the launcher), start-tree (all processes of it), stopped (the same, by systemctl stop), detach (who asks for it),
# service (the launcher that systemd starts for it), exec, stop, import, commit, apply, gc.
# A tracer of our own (tests/inject) kills the process that makes the Nth system call, for every N that an undisturbed run has; then makes
# the Nth fail, with EIO, ENOSPC, ENOMEM, EPERM and EINTR in turn. After each: no process, unit, mount or cgroup of it is left within the
# seconds that systemd needs; what was printed on a failure is one line (and a hint; one without its cause is shown), and the command does not hang; the same command works
# when nothing disturbs it, and leaves /run, /var/tmp, the store and the host's files as they were before the scenario.
# Prints one line a scenario, and at the end `kills: K, failures: F, not reached: M, things left: L`. Exit status 1 unless L is 0. A try
# whose call was not reached (two runs differ by a few) is not counted as one.
# SANDBOX_BIN and SANDBOX_INJECT name the programs; else they are built.
set -euo pipefail
all_scenarios="start start-tree stopped detach service exec stop import commit apply gc"
errors=(EIO ENOSPC ENOMEM EPERM EINTR)
# As strerror(3) has them, and the library that we use, and ld.so.
declare -A text=([EIO]="Input/output error|I/O error" [ENOSPC]="No space left on device" [ENOMEM]="Cannot allocate memory|Out of memory|Resource temporarily unavailable"
  [EPERM]="Operation not permitted" [EINTR]="Interrupted system call|Error 4")

# What the program says when it sees the consequence only: its own process, or systemd, has met the error.
other_words="is gone|has just ended|ended before|did not start: systemd calls its result|interrupted by a signal|memory allocation of|internal error|: File exists|Fatal glibc error"

die() { echo "crash.sh: $*" >&2; exit 125; }

outside() { # outside [STRIDE [SCENARIO…]]
  local here
  here=$(dirname "$(realpath "$0")")
  cd "$here/.."
  # shellcheck source-path=SCRIPTDIR source=lab/staged.sh
  . "$here/lab/staged.sh"
  parse_counted 2,15 "$all_scenarios" 1 "$@"
  export SANDBOX_INJECT=${SANDBOX_INJECT:-$(injector)}
  SANDBOX_LOG='' run_staged "$here/crash.sh" "$number" "${CRASH_ERRORS:-turn}" "${chosen[@]}"
}

# --- scenarios: set_up once; `words` is the command, `before` and `after` what is done around it, `again` what must work then -----------

set_up() { # set_up SCENARIO
  words=() whose=all before=true after=true ending='' again=()
  case "$1" in
    start) words=(run --unit=crash -m 64M -- crashload 0) whose=first ;;
    start-tree) words=(run --unit=crash -m 64M -- crashload 0) ;;
    stopped) words=(run --unit=crash -m 64M -- crashload 1000) ending=stop_scope again=(run --unit=crash -m 64M -- crashload 0) ;;
    detach) words=(run --detach --unit=crash -m 64M -- crashload 0.05) after=service_ends ;;
    service) words=(run --detach --unit=crash -m 64M -- crashload 0.05) after=service_ends; drop_in ;;
    exec) before=one_lives after=one_still_lives ending=end_load words=(exec crash crashload 1000) again=(exec crash crashload 0) ;;
    stop) before=one_lives after=it_ends words=(stop crash) again=(ps -q) ;;
    import) make_image; words=(image import --quiet --tag crash:1 "$work/image.tar") after=store_verifies ;;
    commit) make_image; keep_one --image crash:1; words=(commit kept crash:2 --quiet) after=store_verifies ;;
    apply) mkdir -p /srv; before=change_host words=(apply kept --yes) after=host_is_one_of_both again=(ps -q) ;;
    gc) make_image; before=import_again words=(image gc --quiet) after=store_verifies ;;
    *) die "no scenario $1 ($all_scenarios)" ;;
  esac
  [ ${#again[@]} -gt 0 ] || again=("${words[@]}")
}

one_lives() { # `crash`, whose own process is no crashload
  systemctl is-active --quiet crash.service || sandbox run --detach --unit=crash -- sleep 1000 > /dev/null
}

it_ends() { ! systemctl is-active --quiet crash.service || sandbox stop crash > /dev/null; }

one_still_lives() { systemctl is-active --quiet crash.service || left "the sandbox that exec went into is gone"; }

service_ends() { # by itself; a failed one stays visible, as it should, and the next start of the name takes its place
  local try
  for try in $(seq 250); do
    case "$(systemctl show -p ActiveState --value crash.service)" in inactive | failed) return 0 ;; esac
    sleep 0.02
  done
  left "crash.service goes on after $try looks: $(systemctl status crash.service --no-pager | head -n 20)"
}

stop_scope() { systemctl stop crash.scope || true; }

end_load() { pkill -TERM -x crashload || true; }

drop_in() { # systemd starts the launcher of the service by way of the tracer; what that does comes from a file
  local place=/run/systemd/system/crash.service.d
  mkdir -p $place
  echo "exec \$(cat $work/injection) $program ${words[*]}" > "$work/start"
  printf '[Service]\nExecStart=\nExecStart=/bin/sh %s\n' "$work/start" > $place/inject.conf
  systemctl daemon-reload
}

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

clear_up() { # the store and the kept roots of a scenario
  local name
  for name in $(sandbox ps -a -q 2> /dev/null) kept; do sandbox discard "$name" > /dev/null 2>&1 || true; done
  rm -rf /srv/file /srv/new
  for name in $(sandbox image ls -q 2> /dev/null); do sandbox image rm "$name" > /dev/null 2>&1 || true; done
  sandbox image gc --quiet > /dev/null 2>&1 || true
}

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

left() { things=$((things + 1)); echo "LEFT by $what: $*" >&2; }

mounts() { sed 's/^[^ ]* [^ ]* //' /proc/1/mountinfo | sort; }

leftovers() { # one line for each process, unit and cgroup of a sandbox; of one that lives on, for what does not belong to it
  local lives=$1
  pgrep -x crashload -l || true
  [ -n "$lives" ] || pgrep -x sandbox -l || true
  [ -n "$lives" ] || systemctl list-units --all --plain --no-legend 'crash*' | grep -v '^crash.service .* failed' || true
  cgroups | comm -13 "$work/cgroups" - || true
}

# What goes while it is looked at is an error of find's.
cgroups() { { find /sys/fs/cgroup -type d 2> /dev/null || true; } | sort; }

# files: what a sandbox, its store and its host have on disk and in /run. Of the store and /run the names; of the host's all that a change
# would alter. An image of another moment has another digest. Names of locks are for the next starts to take away, a few each.
files() {
  # Not each of them is there.
  { find /run/sandbox /run/systemd/nspawn-uid /var/lib/sandbox /var/tmp /tmp -mindepth 1 -not -path "$work*" -not -path "$stage*" \
    -not -path '/run/systemd/nspawn-uid/*' -not -path '/tmp/systemd-private-*' -not -path '/var/tmp/systemd-private-*' 2> /dev/null || true; } |
    sed 's/[0-9a-f]\{64\}/DIGEST/g' | sort
  [ "$scenario" = apply ] || { find /srv -printf '%p %s %T@ %m %u\n' || true; } | sort
  { find /etc /usr/local /root /home /opt -printf '%p %s %T@ %m %u\n' || true; } | sort
}

locks() { find /run/systemd/nspawn-uid -type f 2> /dev/null | wc -l; }

check() { # nothing of it is left, in the time that systemd has for its own
  local found='' try lives=''
  if [ "$before" = one_lives ] && systemctl is-active --quiet crash.service; then lives=lives; fi
  for try in $(seq 250); do
    found=$(leftovers "$lives")
    [ -n "$found" ] || break
    sleep 0.02
  done
  [ "$try" -le "$longest" ] || longest=$try
  [ -z "$found" ] || { left "$found"; systemctl kill -s KILL 'crash*' 2> /dev/null || true; systemctl stop 'crash*' || true; sleep 0.2; }
  [ "$(mounts)" = "$mounts_before" ] || { left "mounts: $(diff <(echo "$mounts_before") <(mounts))"; mounts_before=$(mounts); }
}

undisturbed() { # the command as it is, to its end; what it says is in $work/healed
  local status=0
  echo > "$work/injection"
  sandbox "${again[@]}" > /dev/null 2> "$work/healed" || status=$?
  if [ "$after" = service_ends ]; then service_ends; systemctl reset-failed crash.service 2> /dev/null || true; fi
  return $status
}

collect() { # what a killed command left in the store, and images that a tag has left
  case "$scenario" in import | commit | apply | gc) sandbox image gc --quiet > "$work/healed" 2>&1 || left "gc: $(cat "$work/healed")" ;; esac
}

heals() { # the same command, undisturbed, works; then nothing that it did not leave before is there
  local found
  undisturbed || left "the next command does not work: $(cat "$work/healed")"
  found=$(sandbox ps -a -q 2>&1)
  [ "$before" != one_lives ] || found=${found/#crash.service/}
  [ -z "$found" ] || left "ps shows $found"
  collect
  files > "$work/files.now"
  found=$(diff "$work/files" "$work/files.now" || true)
  [ -z "$found" ] || { left "files: $found"; cp "$work/files.now" "$work/files"; }
}

# said STATUS ERROR: what was printed is one line, with perhaps a hint; it names the error that was made, or says in other words what
# was not to be had.
said() {
  local lines
  case "$1" in 124 | 137) left "hangs: $(cat "$work/said")" ;; esac
  # Before the program begins libc and Rust's runtime abort in their own words.
  [ "$n" -gt 30 ] || return 0
  lines=$(grep -cv -e '^sandbox: warning: ' -e '^hint: ' "$work/said" || true)
  [ "$lines" -le 1 ] || left "$lines lines of error: $(cat "$work/said")"
  if [ "$1" = 125 ] && [ "$lines" = 0 ]; then left "ends with 125 and says nothing"; fi
  # The second is the end that the round itself brings.
  case "$1" in 0 | 143) return ;; esac
  # What ld.so says of the command's own start is not ours.
  case "$what" in *"of crashload"*) return 0 ;; esac
  grep -qE "${text[$2]}" "$work/said" || grep -qE "$other_words" "$work/said" || echo "$what: status $1: $(cat "$work/said")" >> "$work/unnamed"
}

# --- the rounds ------------------------------------------------------------------------------------------------------------------

inject() { inject_loudly "$@" 2> /dev/null; }   # the shell would tell of each kill

inject_loudly() { # inject_loudly DEED [N]: the command under the tracer; its exit status is `status`
  local tracer=("$stage/inject" "$work/hit" "$whose" "$@" --) load=
  rm -f "$work/hit"
  status=0
  if [ "$scenario" = service ]; then
    echo "${tracer[*]}" > "$work/injection"
    tracer=()
  fi
  timeout -k 5 60 "${tracer[@]}" "$program" "${words[@]}" > /dev/null 2> "$work/said" < /dev/null &
  if [ -n "$ending" ]; then
    while kill -0 $! 2> /dev/null; do
      load=$(pgrep -x crashload || true)
      [ -z "$load" ] || { $ending; break; }
      sleep 0.01
    done
  fi
  wait $! || status=$?
}

total() { # how many system calls an undisturbed run has
  $before
  inject count
  case "$status" in 0 | 143) ;; *) die "$scenario does not work: $status $(cat "$work/said")" ;; esac
  $after
  for _ in $(seq 100); do [ ! -s "$work/hit" ] || break; sleep 0.02; done
  sed -n 's/^total //p' "$work/hit"
}

round() { # round DEED N
  $before
  what="$scenario, $1 at $2"
  inject "$1" "$2"
  what+=" ($(cat "$work/hit" 2> /dev/null || true))"
  if [ ! -s "$work/hit" ]; then missed=$((missed + 1)); elif [ "$1" = kill ]; then kills=$((kills + 1)); else failures=$((failures + 1)); fi
  [ "$1" = kill ] || said "$status" "$1"
  cut -d, -f1 "$work/hit" >> "$work/hits" 2> /dev/null || true
  $after
  check
  heals
}

rounds() { # rounds SCENARIO STRIDE turn|all
  local total n error start=$SECONDS things_before=$things tries
  scenario=$1
  set_up "$scenario"
  total=$(total)
  [[ $total =~ ^[0-9]+$ ]] || die "$scenario: the tracer counts $total system calls"
  local tries_before=$((kills + failures)) missed_before=$missed
  undisturbed || die "$scenario does not work: $(cat "$work/healed")"
  sandbox ps -q > /dev/null
  collect
  mounts_before=$(mounts)
  cgroups > "$work/cgroups"
  files > "$work/files"
  for n in $(seq 1 "$2" "$total"); do
    round kill "$n"
    tries=("${errors[n / $2 % ${#errors[@]}]}")
    [ "$3" != all ] || tries=("${errors[@]}")
    for error in "${tries[@]}"; do round "$error" "$n"; done
  done
  # Two runs differ by a few calls, and some cannot fail.
  what=$scenario
  [ $(((missed - missed_before) * 4)) -le $((kills + failures - tries_before)) ] ||
    left "$((missed - missed_before)) tries hit nothing, $((kills + failures - tries_before)) something"
  [ "$before" != one_lives ] || it_ends
  clear_up
  rm -rf /run/systemd/system/crash.service.d
  systemctl daemon-reload
  echo "$scenario: $total system calls, every ${2}th killed and failed, $((things - things_before)) things left, $((SECONDS - start)) s"
}

inside() { # inside STAGE STRIDE turn|all SCENARIO…
  local stage=$1 stride=$2 which=$3 scenario
  shift 3
  install -m755 "$stage/sandbox" /usr/local/bin/sandbox
  install -m755 "$(command -v sleep)" /usr/local/bin/crashload
  program=/usr/local/bin/sandbox
  work=$(mktemp -d /var/tmp/crash-XXXXXX) kills=0 failures=0 missed=0 things=0 longest=0 what=start
  sandbox run --unit=crash -- true
  for scenario; do rounds "$scenario" "$stride" "$which"; done
  echo "hit most: $(sort "$work/hits" | uniq -c | sort -rn | head -n 12 | tr -s ' \n' ' ')"
  # Told, not counted: nothing is left by them.
  if [ -s "$work/unnamed" ]; then echo "errors that do not name their cause:"; cat "$work/unnamed"; fi
  echo "longest wait for something to be gone: $((longest * 20)) ms at least; locks of ID ranges that are left: $(locks)"
  echo "kills: $kills, failures: $failures, not reached: $missed, things left: $things"
  [ "$things" = 0 ]
}

case "${1:-}" in inside) inside "${@:2}" ;; *) outside "$@" ;; esac
