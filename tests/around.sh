#!/bin/bash
# around.sh — what happens around live sandboxes: is one lost, or changed? In the tree lab; as root.
#   tests/around.sh [COUNT [STEP…]]             20 live ones; every step but `hang` by default (it takes a minute, and is run when named)
#   tests/around.sh --vm LANE [COUNT [STEP…]]   in a VM, on a suite's own kernel (see vm/vm.sh): only there the clock can jump
# Steps: reload, reexec, dbus, journald, kill, oom, run (full /run), store (full disk of the store), clock, launcher (SIGSTOP), fuse
# (/dev/fuse removed), upgrade (of our program, by rename), hang (SIGSTOP of PID 1 for 40 s).
# The live ones are scopes and detached services, with limits of memory, CPU and tasks, with devices, and with a kept root. After each
# step, and while it lasts, each is alive with its limits and devices, and `ps`, `exec`, `inspect`, `run`, `run --detach` and `stop` work;
# while it lasts they may refuse, in one line and perhaps a hint. `run` that refuses leaves nothing.
# One line a step: `STEP: N alive, C changed, ps ok, …`, and at the end `steps: S, lost: L, changed: C, wrong: W`. Exit status 1 unless all
# three are 0. SANDBOX_BIN names the program; else the release build is made.
set -euo pipefail
all_steps="reload reexec dbus journald kill oom run store clock launcher fuse upgrade"

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

unit_of() { case $(($1 % 4)) in 0) echo "around$1.scope" ;; *) echo "around$1.service" ;; esac; }

start_all() {
  local n
  for n in $(seq "$count"); do start_one "$n"; done
  for n in $(seq "$count"); do await "$n"; done
}

await() { # await N: until it runs, and what it is then
  local n=$1 try
  for try in $(seq 600); do
    pids[n]=$(leader_of "$n")
    if [ -n "${pids[n]}" ]; then before[n]=$(state_of "$n") rules[n]=$(rules_of "$n"); return; fi
    sleep 0.1
  done
  die "around$n did not start after $try tries: $(cat "$work/starts")"
}

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

# --- what is asked during and after each step -----------------------------------------------------------------------------------------

wrong() { wrongs=$((wrongs + 1)); echo "  WRONG in $step: $*"; }

asked() { # asked WORD WITH… : runs sandbox WITH…, adds `WORD ok` or `WORD refused with …` to $answers; wrong if it may not refuse, or how
  local word=$1 status=0 lines
  shift
  timeout 120 sandbox "$@" > "$work/out" 2> "$work/said" < /dev/null || status=$?
  if [ "$status" = 0 ]; then answers+=", $word ok"; return 0; fi
  lines=$(grep -cv -e '^sandbox: warning: ' -e '^hint: ' "$work/said" || true)
  answers+=", $word refused ($status) with '$(grep -v '^sandbox: warning: ' "$work/said" | head -n1)'"
  [ "$phase" = during ] || wrong "$word does not work afterwards: $(cat "$work/said")"
  [ "$lines" = 1 ] || wrong "$word has $lines lines of error: $(cat "$work/said")"
  [ "$status" != 124 ] || wrong "$word hangs"
  return 1
}

ask() { # ask PHASE [KNOWN]: a line of what works; KNOWN are asked of exec and inspect
  local n alive=0 altered=0 found answers="" known=${2:-1} extra
  phase=$1
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
  asked ps ps -q && { found=$(wc -l < "$work/out"); [ "$found" -ge "$alive" ] || wrong "ps shows $found of $alive"; }
  asked exec exec "around$known" true || true
  asked inspect inspect "around$known" || true
  asked run run -q --unit=extra -m 32M -- true || true
  if asked detach run -q --detach --unit=extra -m 32M -- sleep infinity; then asked stop stop extra || true; fi
  [ "$phase" = during ] || { extra=$(extra_left); [ -z "$extra" ] || wrong "left: $extra"; }
  echo "$step, $phase: $alive alive, $altered changed$answers"
}

extra_left() { # within the seconds that systemd needs
  local try found
  for try in $(seq 50); do
    found=$(systemctl list-units --all --plain --no-legend 'extra*'; find /sys/fs/cgroup -type d -name 'extra*' 2> /dev/null || true)
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

step_kill() { # that one ends, no other
  local n=$count unit
  unit=$(unit_of "$n")
  before[n]=
  systemctl kill -s KILL "$unit"
  for _ in $(seq 50); do systemctl is-active --quiet "$unit" || break; sleep 0.1; done
  ! systemctl is-active --quiet "$unit" || wrong "$unit lives on after systemctl kill"
  ask after
  sandbox rm "around$n" > /dev/null 2>&1 || true
  start_one "$n"; await "$n"
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
  grep -q '/run, which is full' "$work/said" || wrong "a refused start does not say that /run is full: $(cat "$work/said")"
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
  if [ -e /run/systemd/container ]; then echo "clock: left out, in a lab the clock is the machine's own; see --vm"; return; fi
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

step_hang() { # a start while PID 1 is stopped ends with 125 in its own time, and nothing of it comes later
  local status=0 start=$SECONDS run ended
  rm -f "$stage/goes-on"
  touch "$stage/stop-pid1"
  while [ -e "$stage/stop-pid1" ]; do sleep 0.1; done
  (
    timeout 120 sandbox run -q --unit=extra -m 32M -- true > /dev/null 2> "$work/run-said" < /dev/null || status=$?
    [ ! -e "$stage/goes-on" ] || status=late
    echo "$status $SECONDS" > "$work/run-status"
  ) &
  run=$!
  phase=during answers=""
  asked exec exec around1 true || true
  asked ps ps -q || true
  wait "$run"
  read -r status ended < "$work/run-status"
  [ "$status" = 125 ] || wrong "run ends with $status: $(cat "$work/run-said")"
  [ "$(grep -cv -e '^hint: ' "$work/run-said")" = 1 ] || wrong "run has not one line of error: $(cat "$work/run-said")"
  echo "hang, during$answers, run refused ($status) after $((ended - start)) s with '$(head -n1 "$work/run-said")'"
  while [ ! -e "$stage/goes-on" ]; do sleep 0.2; done
  [ -z "$(extra_left)" ] || wrong "left: $(extra_left)"
  ask after
}

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
  ask after
  for step; do steps=$((steps + 1)); "step_$step"; done
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
parse_counted 2,13 "$all_steps" 20 "$@"
stage_program release
if [ -n "$vm" ]; then in_vm "$vm" "$number" "${chosen[@]}"; else in_lab "$number" "${chosen[@]}"; fi
