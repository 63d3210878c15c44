#!/bin/bash
# around.sh — what happens around live sandboxes: is one lost, or changed? In the tree lab; as root.
#   tests/around.sh [COUNT [STEP…]]             100 live ones, every step, by default
#   tests/around.sh --vm LANE [COUNT [STEP…]]   in a VM, on a suite's own kernel (see vm/vm.sh): only there the clock can jump
# Steps: reload, reexec, dbus, journald, kill (of a scope and of a service), oom, run (full /run), store (full disk of the store), clock,
# launcher (SIGSTOP), fuse (/dev/fuse removed), upgrade (of our program, by rename), hang (SIGSTOP of PID 1 for 40 s; not in a VM).
# The live ones are scopes and detached services, with limits of memory, CPU and tasks, with devices, and with a kept root. After each
# step, and while it lasts, each is alive with its limits and devices, and `ps`, `exec`, `inspect`, `run`, `run --detach` and `stop` work;
# while it lasts they may refuse, in one line that names a cause, and perhaps a hint. `run` that refuses leaves nothing. After each step
# one of each kind also takes `exec`, `inspect`, `logs`, `stats`, `set-property` (there and back) and, on cgroup v2, `pause` and `resume`;
# the kernel lets its processes open the devices that it has, and no other.
# One line a step: `STEP: N alive, C changed, ps ok, …`, and at the end `steps: S, lost: L, changed: C, wrong: W`. Exit status 1 unless all
# three are 0. A step that cannot be done here is not counted. SANDBOX_BIN names the program; else the release build is made.
set -euo pipefail
all_steps="reload reexec dbus journald kill oom run store clock launcher fuse upgrade hang"
MiB=$((1 << 20))

die() { echo "around.sh: $*" >&2; exit 125; }

# --- outside: the lab, and the one thing that can be done to its PID 1 only from there; or a VM -------------------------------------------

in_lab() { # in_lab COUNT STEP…
  local status=0
  lab=around-$$ hand=
  trap 'finish' EXIT
  install -m755 tests/around.sh "$stage/script"
  tests/lab/lab.sh up "$lab" --tree --bind "$stage"
  stop_pid1_when_asked &
  hand=$!
  SANDBOX_LOG='' tests/lab/lab.sh exec "$lab" -- bash "$stage/script" inside "$stage" "$@" || status=$?
  exit "$status"
}

in_vm() { # in_vm LANE COUNT STEP…: vm.sh gives the script no arguments
  { printf 'set -- inside /payload'; printf ' %q' "${@:2}"; echo; cat tests/around.sh; } > "$stage/script"
  SANDBOX_BIN=$stage/sandbox tests/vm/vm.sh script "$1" "$stage/script"
}

finish() {
  [ -z "$hand" ] || kill "$hand" 2> /dev/null || true
  [ ! -d "/run/lab-$lab" ] || { kill -CONT "$(cat "/run/lab-$lab/pid")" 2> /dev/null || true; tests/lab/lab.sh down "$lab"; }
  rm -rf "$stage"
}

stop_pid1_when_asked() { # PID 1 of a namespace takes a SIGSTOP only from outside it
  # Nothing that outlives this holds the caller's streams.
  exec > /dev/null 2>&1
  while sleep 0.2; do
    [ -e "$stage/stop-pid1" ] || continue
    kill -STOP "$(cat "/run/lab-$lab/pid")"
    rm "$stage/stop-pid1"
    sleep 40
    kill -CONT "$(cat "/run/lab-$lab/pid")"
    touch "$stage/goes-on"
  done
}

# --- the live ones ---------------------------------------------------------------------------------------------------------------------

start_one() { # start_one N: one of four kinds, called aroundN
  local name=around$1 chatter='while :; do echo alive; sleep 1; done'
  case $(($1 % 4)) in
    0) sandbox run -q --unit="$name" -m 64M -p CPUWeight=58 -- sleep infinity < /dev/null > /dev/null 2>> "$work/starts" & ;;
    1) sandbox run -q --detach --unit="$name" -m 80M --pids-limit 50 --device /dev/net/tun -- sleep infinity > /dev/null ;;
    2) sandbox run -q --detach --unit="$name" -m 64M --cpus 0.5 -- sh -c "$chatter" > /dev/null ;;
    3) sandbox run -q --detach --name "$name" --unit="$name" --keep -m 96M -- sleep infinity > /dev/null ;;
  esac
}

memory_of() { case $(($1 % 4)) in 1) echo 80 ;; 3) echo 96 ;; *) echo 64 ;; esac; } # memory_of N: what start_one gives it, in MiB

unit_of() { case $(($1 % 4)) in 0) echo "around$1.scope" ;; *) echo "around$1.service" ;; esac; }

start_all() {
  local n
  for n in $(seq "$count"); do start_one "$n"; done
  for n in $(seq "$count"); do await "$n"; done
}

await() { # await N: until it runs with its limit, and what it is then
  local n=$1 try
  for try in $(seq 600); do
    pids[n]=$(leader_of "$n")
    if [ -n "${pids[n]}" ]; then
      before[n]=$(state_of "$n") rules[n]=$(rules_of "$n")
      ! has_memory "$(memory_of "$n")" "${before[n]}" || return 0
    fi
    sleep 0.1
  done
  die "around$n does not run with its limit of memory after $try tries: $(cat "$work/starts") $(grep -o 'memory\..*' <<< "${before[n]:-}")"
}

has_memory() { grep -Eq "/memory\.(limit_in_bytes|max):$(($1 * MiB))\$" <<< "$2"; } # has_memory MIB STATE

leader_of() { sandbox inspect "around$1" --json 2> /dev/null | sed -n 's/^ *"leader": \([0-9]*\).*/\1/p' || true; }

# state_of N: process, cgroups, and every limit and device rule as the kernel has it; `gone` if it does not live. Sorted, since systemd
# writes a cgroup's device rules, which are a set, anew in another order.
state_of() {
  local pid=${pids[$1]} controllers path dir started
  started=$(sed 's/.*) //' "/proc/$pid/stat" 2> /dev/null | cut -d' ' -f20) || true
  [ -n "$started" ] || { echo gone; return; }
  echo "$pid started at $started"
  while IFS=: read -r _ controllers path; do
    for dir in "/sys/fs/cgroup/${controllers:-unified}$path" "/sys/fs/cgroup$path"; do
      [ ! -d "$dir" ] || grep -s . "$dir"/{memory.limit_in_bytes,memory.max,pids.max,cpu.shares,cpu.weight,cpu.cfs_quota_us,cpu.max,devices.list} || true
    done
  done < "/proc/$pid/cgroup" | sort
}

# rules_of N: the devices that systemd knows, which is what shows them on cgroup v2
rules_of() { systemctl show -p DeviceAllow -p DevicePolicy "$(unit_of "$1")" 2> /dev/null | sort; }

# devices_hold N: those that it has can be opened in its control groups, others cannot. The programs of cgroup v2 cannot be read: this shows
# that they are in force.
devices_hold() {
  local n=$1 allowed=/dev/null refused=/dev/net/tun said
  if [ $((n % 4)) = 1 ]; then
    allowed=/dev/net/tun refused=/dev/kmsg
    sandbox exec "around$n" sh -c 'exec 3<> /dev/net/tun' > /dev/null 2> "$work/said" || wrong "around$n has lost /dev/net/tun: $(cat "$work/said")"
  fi
  said=$(opening "$n" "$allowed") || wrong "around$n may not open $allowed any more: $said"
  if said=$(opening "$n" "$refused"); then wrong "around$n may open $refused now"; return; fi
  [[ $said = *"Operation not permitted"* ]] || wrong "around$n does not open $refused, but why? $said"
}

opening() { # opening N DEVICE: by a process in its control groups that sees the machine's own /dev
  local dir
  dir=$(sed -n 's|^[0-9]*:devices:|/sys/fs/cgroup/devices|p' "/proc/${pids[$1]}/cgroup")
  [ -n "$dir" ] || dir=$(sed -n 's|^0::|/sys/fs/cgroup|p' "/proc/${pids[$1]}/cgroup")
  # shellcheck disable=SC2016  # for the inner shell
  bash -c 'echo $$ > "$1/cgroup.procs" && : <> "$2"' opening "$dir" "$2" 2>&1
}

# --- what is asked during and after each step -----------------------------------------------------------------------------------------

wrong() { wrongs=$((wrongs + 1)); echo "  WRONG in $step: $*"; }

asked() { # asked WORD WITH… : runs sandbox WITH…, adds `WORD ok` or `WORD refused with …` to $answers; wrong if it may not refuse, or how
  local word=$1 status=0
  shift
  timeout 120 sandbox "$@" > "$work/out" 2> "$work/said" < /dev/null || status=$?
  if [ "$status" = 0 ]; then answers+=", $word ok"; return 0; fi
  answers+=", $word refused ($status) with '$(errors | head -n1)'"
  [ "$phase" = during ] || wrong "$word does not work afterwards: $(cat "$work/said")"
  explained "$word"
  [ "$status" != 124 ] || wrong "$word hangs"
  return 1
}

errors() { grep -v -e '^sandbox: warning: ' -e '^hint: ' "$work/said" || true; }

explained() { # explained WORD: what it said is one line with a cause: `what: why`, or a sentence that is enough
  local lines
  lines=$(errors | wc -l)
  [ "$lines" = 1 ] || wrong "$1 has $lines lines of error: $(cat "$work/said")"
  errors | grep -Eq '^sandbox: .+(: [^ ]|, which is full| within [0-9]+ s)' || wrong "$1 names no cause: $(cat "$work/said")"
  errors >> "$work/refusals"
}

ask() { # ask PHASE [KNOWN]: a line of what works; KNOWN, one that lives, is asked of `exec` and `inspect`
  local alive=0 altered=0 found answers="" known=${2:-1} extra
  phase=$1
  look_at_all
  : > "$work/refusals"
  asked ps ps -q && { found=$(wc -l < "$work/out"); [ "$found" -ge "$alive" ] || wrong "ps shows $found of $alive"; }
  if [ "$phase" = during ]; then
    asked exec exec "around$known" true || true
    asked inspect inspect "around$known" || true
  else
    ask_each_kind
  fi
  asked run run -q --unit=extra -m 32M -- true || true
  if asked detach run -q --detach --unit=extra -m 32M -- sleep infinity; then asked stop stop extra || true; fi
  [ "$phase" = during ] || { extra=$(extra_left); [ -z "$extra" ] || wrong "left: $extra"; }
  echo "$step, $phase: $alive alive, $altered changed$answers"
}

look_at_all() { # counts them in $alive, and in $altered those that are not what they were
  local n found
  for n in $(seq "$count"); do
    [ -n "${before[n]}" ] || continue
    found=$(state_of "$n")
    if [ "$found" = gone ]; then lost=$((lost + 1)); wrong "around$n is lost"; before[n]=; continue; fi
    alive=$((alive + 1))
    if [ "$found" != "${before[n]}" ]; then
      altered=$((altered + 1))
      echo "  CHANGED in $step: around$n: $(diff <(echo "${before[n]}") <(echo "$found") || true)"
    elif [ "$phase" = after ] && [ "$(rules_of "$n")" != "${rules[n]}" ]; then
      altered=$((altered + 1))
      echo "  CHANGED in $step: around$n: $(diff <(echo "${rules[n]}") <(rules_of "$n") || true)"
    fi
  done
  changed=$((changed + altered))
}

ask_each_kind() { # all that can be asked of one that lives, of the first of each kind
  local kind n
  echo "$answers" > "$work/answers"
  for kind in 1 2 3 0; do
    n=$(first_of "$kind")
    [ -n "$n" ] || continue
    answers=""
    ask_one "$n"
    echo "$answers" >> "$work/answers"
  done
  # Four times the same is said once.
  answers=$(tr ',' '\n' < "$work/answers" | sed 's/^ //' | awk 'NF && !seen[$0]++ { printf ", %s", $0 }')
}

first_of() { # first_of KIND: that lives
  local n
  for n in $(seq "$count"); do
    if [ $((n % 4)) = "$1" ] && [ -n "${before[n]}" ]; then echo "$n"; return; fi
  done
}

ask_one() { # ask_one N
  local n=$1 name=around$1 command memory
  memory=$(memory_of "$n")
  asked exec exec "$name" true || true
  asked inspect inspect "$name" || true
  asked logs logs -n 1 "$name" || true
  asked stats stats "$name" && { grep -q "$name" "$work/out" || wrong "stats does not show $name: $(cat "$work/out")"; }
  asked set-property set-property "$name" "MemoryMax=$((memory + 8))M" &&
    { has_memory $((memory + 8)) "$(state_of "$n")" || wrong "set-property of $name is not in force: $(state_of "$n")"; }
  asked set-property set-property "$name" "MemoryMax=${memory}M" || true
  [ "$(state_of "$n")" = "${before[n]}" ] || wrong "$name is not what it was before set-property: $(diff <(echo "${before[n]}") <(state_of "$n"))"
  if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
    for command in pause resume; do asked $command $command "$name" || true; done
  fi
  devices_hold "$n"
}

# Within the seconds that systemd needs. A process of a start that systemd never took has no unit; the mounts would be in ours.
extra_left() {
  local try found now
  for try in $(seq 50); do
    found=$(systemctl list-units --all --plain --no-legend 'extra*'; find /sys/fs/cgroup -type d -name 'extra*' 2> /dev/null || true
      pgrep -af -- 'sandbox.*--unit=extra' || true)
    now=$(wc -l < /proc/self/mountinfo)
    [ "$now" = "$mounts" ] || found+=" $((now - mounts)) mounts"
    [ -n "$found" ] || return 0
    systemctl reset-failed 'extra*' 2> /dev/null || true
    [ "$try" = 1 ] || sleep 0.1
  done
  echo "$found"
}

# --- the steps ---------------------------------------------------------------------------------------------------------------------------

step_reload() { systemctl daemon-reload; ask after; }

step_reexec() { systemctl daemon-reexec; ask after; }

step_dbus() {
  systemctl stop dbus.socket dbus.service 2> /dev/null
  ask during
  systemctl start dbus.socket dbus.service
  ask after
}

step_journald() {
  systemctl restart systemd-journald
  ask after 2
  journal_goes_on
}

journal_goes_on() { # what is said from now on is in the journal
  local lines
  [ "$count" -ge 2 ] || return 0
  journalctl --no-pager -q -n 0 --cursor-file "$work/cursor" > /dev/null
  sleep 2.5
  lines=$(journalctl --no-pager -q -u around2.service --cursor-file "$work/cursor" | wc -l)
  [ "$lines" -gt 0 ] || wrong "nothing that around2 says is in the journal any more"
}

step_kill() { # that these two end, no other: the last ones, since the first are asked
  local n victims
  victims="$(last_of scope) $(last_of service)"
  for n in $victims; do kill_one "$n"; done
  ask after
  for n in $victims; do
    sandbox rm "around$n" > /dev/null 2>&1 || true
    start_one "$n"; await "$n"
  done
}

last_of() { # last_of scope|service
  local n
  for n in $(seq "$count" -1 1); do
    case "$(unit_of "$n")" in *."$1") echo "$n"; return ;; esac
  done
}

kill_one() { # kill_one N
  local unit
  unit=$(unit_of "$1")
  before[$1]=
  systemctl kill -s KILL "$unit"
  for _ in $(seq 50); do systemctl is-active --quiet "$unit" || break; sleep 0.1; done
  ! systemctl is-active --quiet "$unit" || wrong "$unit lives on after systemctl kill"
}

step_oom() { # the memory of one: what took it dies, the sandbox and the others live
  local status=0
  sandbox exec around1 python3 -c 'x = bytearray(300 << 20)' > /dev/null 2>&1 || status=$?
  [ "$status" = 137 ] || wrong "exec that runs out of memory ends with $status"
  ask after
}

step_run() {
  local used size
  used=$(df --output=used -k /run | tail -n1) size=$(($(df --output=size -k /run | tail -n1)))
  mount -o "remount,size=$((used + 64))k" /run
  dd if=/dev/zero of=/run/full bs=4k > /dev/null 2>&1 || true
  ask during
  grep -q '/run, which is full' "$work/refusals" || wrong "a refused start does not say that /run is full: $(cat "$work/refusals")"
  mount -o "remount,size=${size}k" /run
  rm -f /run/full
  ask after
}

step_store() {
  dd if=/dev/zero of=/var/lib/sandbox/full bs=4k > /dev/null 2>&1 || true
  phase=during answers=""
  asked import image import --quiet --tag full:1 "$work/image.tar" && wrong "an import fits on a full disk"
  asked keep run -q --keep --name full --unit=extra -m 32M -- sh -c 'echo > /srv/x' || true
  echo "store, during$answers"
  ask during 3
  rm -f /var/lib/sandbox/full
  ask after 3
  answers=""
  asked import image import --quiet --tag full:1 "$work/image.tar" || true
  asked verify image verify --quiet || true
  asked keep run -q --keep --name full --unit=extra -m 32M -- true || true
  asked discard discard full || true
  echo "store, after$answers"
}

step_clock() { # hours and days, forward and back; what `ps` says of ages is no matter of the clock
  local hours ages
  if [ -e /run/systemd/container ]; then leave_out "in a lab the clock is the machine's own; see --vm"; return; fi
  for hours in 2 -4 1000 -3000; do
    date -s "@$(($(date +%s) + hours * 3600))" > /dev/null
    echo "clock, by $hours hours: it is $(date '+%F %T') now"
    ask after 2
    ages=$(sandbox ps | awk 'NR == 1 { at = index($0, "AGE") } NR > 1 { print substr($0, at, 8) }' | grep -v '^[0-9]*\(s\|min\) ' || true)
    [ -z "$ages" ] || wrong "ps shows ages of $(tr -s ' \n' ' ' <<< "$ages")"
    journal_goes_on
  done
}

step_launcher() {
  local pid n=4
  [ "$count" -ge 4 ] || n=$count
  for pid in $(pgrep -x sandbox); do ! grep -qz "^--unit=around$n\$" "/proc/$pid/cmdline" || kill -STOP "$pid"; done
  ask during "$n"
  pkill -CONT -x sandbox || true
  ask after "$n"
}

step_fuse() {
  mv /dev/fuse /dev/fuse.away
  ask during
  [ "$(sandbox exec around1 sed -n 's/^MemTotal: *//p' /proc/meminfo)" = "81920 kB" ] || wrong "around1 does not see its own memory"
  mv /dev/fuse.away /dev/fuse
  ask after
}

step_upgrade() {
  cp /usr/local/bin/sandbox /usr/local/bin/sandbox.new
  mv /usr/local/bin/sandbox.new /usr/local/bin/sandbox
  ask after 4
}

# A start while PID 1 is stopped ends with 125 in its own time, and nothing of it comes later.
step_hang() {
  local ours pids_of_starts
  if [ ! -e /run/systemd/container ]; then leave_out "PID 1 takes no SIGSTOP from within its VM"; return; fi
  ours=$(pgrep -xc sandbox || true)
  rm -f "$stage/goes-on"
  touch "$stage/stop-pid1"
  while [ -e "$stage/stop-pid1" ]; do sleep 0.1; done
  start_in_hang run --unit=extra -m 32M -- true &
  pids_of_starts=$!
  start_in_hang detach --detach --unit=extra-detached -m 32M -- sleep infinity &
  pids_of_starts+=" $!"
  phase=during answers=""
  asked exec exec around1 true || true
  asked ps ps -q || true
  # shellcheck disable=SC2086  # words
  wait $pids_of_starts
  refused_in_hang run
  refused_in_hang detach
  echo "hang, during$answers"
  while [ ! -e "$stage/goes-on" ]; do sleep 0.2; done
  sleep 3   # PID 1 now reads what waited for it
  [ -z "$(extra_left)" ] || wrong "left: $(extra_left)"
  [ "$(pgrep -xc sandbox || true)" = "$ours" ] || wrong "left: $(pgrep -xc sandbox || true) processes of ours, before there were $ours"
  ask after
}

start_in_hang() { # start_in_hang WORD FLAG…
  local word=$1 status=0 start=$SECONDS
  timeout 120 sandbox run -q "${@:2}" > /dev/null 2> "$work/$word-said" < /dev/null || status=$?
  [ ! -e "$stage/goes-on" ] || status=late
  echo "$status $((SECONDS - start))" > "$work/$word-status"
}

refused_in_hang() { # refused_in_hang WORD
  local status seconds
  read -r status seconds < "$work/$1-status"
  cp "$work/$1-said" "$work/said"
  answers+=", $1 refused ($status) after $seconds s with '$(errors | head -n1)'"
  [ "$status" = 125 ] || wrong "$1 ends with $status: $(cat "$work/said")"
  explained "$1"
}

leave_out() { echo "$step: left out, $*"; done_here=0; } # leave_out WHY: the step is not counted

small_disk_on() { # small_disk_on DIR: one that can be filled
  if [ -e /run/systemd/container ]; then mount -t tmpfs -o mode=700,size=32M store "$1"; return; fi
  # Before Linux 6.3 a tmpfs cannot be mounted with other owners, as a kept root needs it; a lab has no loop devices.
  modprobe loop
  truncate -s 64M "$work/disk"
  mke2fs -q -t ext4 -m 0 "$work/disk"
  mount -o loop "$work/disk" "$1"
  rmdir "$1/lost+found"
  chmod 700 "$1"
}

inside() { # inside STAGE COUNT STEP…
  stage=$1 count=$2
  shift 2
  install -m755 "$stage/sandbox" /usr/local/bin/sandbox
  work=$(mktemp -d /var/tmp/around-XXXXXX) steps=0 lost=0 changed=0 wrongs=0 step=start pids=() before=() rules=()
  mkdir -p /var/lib/sandbox "$work/root"
  small_disk_on /var/lib/sandbox
  cp /bin/busybox "$work/root/sh"
  tar -C "$work/root" -cf "$work/image.tar" .
  touch "$work/starts"
  start_all
  mounts=$(wc -l < /proc/self/mountinfo)
  ask after
  for step; do done_here=1; "step_$step"; steps=$((steps + done_here)); done
  echo "steps: $steps, lost: $lost, changed: $changed, wrong: $wrongs"
  [ $((lost + changed + wrongs)) = 0 ]
}

if [ "${1:-}" = inside ]; then inside "${@:2}"; exit; fi
here=$(dirname "$(realpath "$0")")
cd "$here/.."
# shellcheck source-path=SCRIPTDIR source=lab/staged.sh
. "$here/lab/staged.sh"
vm=
[ "${1:-}" != --vm ] || { vm=${2:?LANE}; shift 2; }
parse_counted 2,17 "$all_steps" 100 "$@"
stage_program release
if [ -n "$vm" ]; then in_vm "$vm" "$number" "${chosen[@]}"; else in_lab "$number" "${chosen[@]}"; fi
