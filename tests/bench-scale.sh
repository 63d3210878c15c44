#!/bin/bash
# bench-scale.sh — many sandboxes at once, in the tree lab; as root.
#   tests/bench.sh scale [COUNT…] [row=N] [crowd=N]     0 100 300 1000 row=10000 crowd=500 by default
# At each number of live ones: what one more start costs, ours and systemd-run --scope with the same limits, in turns, in many short
# rounds with 0.3 s of rest before each (bench.sh says why), in every other one ours first, 480 of each (SANDBOX_BENCH_STARTS: more), which
# takes minutes since systemd-run has two speeds; what `sandbox ps` and `systemctl list-units` take. At the largest: the private memory of launcher and init of each, from smaps_rollup. After all have ended, after `row` starts one
# after the other and after `crowd` with 8 at a time: what is left of cgroups, open files of PID 1, mounts, units, processes, files (also
# the locks of ranges of IDs). The bars: a start takes at most 0.85 of systemd-run's with none live, at most as long with others; ps takes
# less than 200 ms at 300; at most 1 MiB private for each; nothing left.
# Exit status 1 says that one was missed.
# SANDBOX_BIN names the program; else the release build is made.
set -euo pipefail
limits=(-p CPUWeight=58 -p MemoryMax=500M)
traced="cgroups, open files of PID 1, mounts, units, processes, files"

live() { systemctl list-units --plain --no-legend 'live*.scope' | wc -l; }

grow() { # grow COUNT: eight starts at a time
  local n
  while [ "$started" -lt "$1" ]; do
    for n in 1 2 3 4 5 6 7 8; do
      if [ "$started" -ge "$1" ] || [ "$n" -gt 8 ]; then break; fi
      started=$((started + 1))
      "$sandbox" run -q --slice=many --unit="live$started" "${limits[@]}" -- sleep infinity < /dev/null > /dev/null 2>> "$work/errors" &
      pids+=($!)
    done
    while [ "$(live)" -lt "$started" ]; do sleep 0.02; [ ! -s "$work/errors" ] || { cat "$work/errors"; exit 1; }; done
  done
}

median_of() { # median_of NAME JSON…: of all its times, in ms; hyperfine writes one time a line
  awk -v name="$1" '
    /"command":/ { mine = index($0, "\"" name "\"") }
    /"times": \[/ { reading = mine; next }
    /\]/ { reading = 0 }
    reading { gsub(/[ ,]/, ""); print $0 * 1000 }' "${@:2}" | sort -n | awk '{ a[NR] = $1 } END { print (a[int((NR + 1) / 2)] + a[int(NR / 2) + 1]) / 2 }'
}

measure() { # measure COUNT: one line of the table
  local ours theirs ps list round turn starts=$((${SANDBOX_BENCH_STARTS:-0} > 480 ? SANDBOX_BENCH_STARTS : 480))
  sleep 2   # what was started last settles
  for round in $(seq $((starts / 4))); do
    turn=(-n systemd-run "systemd-run --scope --quiet ${limits[*]} true" -n sandbox "$sandbox run ${limits[*]} -- true")
    [ $((round % 2)) = 1 ] || turn=("${turn[@]:3}" "${turn[@]:0:3}")
    hyperfine -N --setup 'sleep 0.3' --warmup 2 --runs 4 --export-json "$results/scale-$1-$round.json" "${turn[@]}" > /dev/null 2>&1 ||
      { hyperfine -N --runs 2 "${turn[@]}"; exit 125; }   # once more, to be heard
  done
  theirs=$(median_of systemd-run "$results/scale-$1"-*.json) ours=$(median_of sandbox "$results/scale-$1"-*.json)
  hyperfine -N --warmup 1 --runs 10 --export-json "$work/times.json" "$sandbox ps -q" "systemctl list-units --no-legend" > /dev/null 2>&1
  read -r ps list < <(awk '/"median":/ { gsub(/[ ,]/, ""); sub(/"median":/, ""); printf "%s ", $0 * 1000 } END { print "" }' "$work/times.json")
  awk -v n="$1" -v ours="$ours" -v theirs="$theirs" -v ps="$ps" -v list="$list" 'BEGIN {
    printf "%6d %12.2f %12.2f %8.2f %10.1f %14.1f\n", n, ours, theirs, ours / theirs, ps, list
    exit (ours / theirs > (n ? 1 : 0.85)) || (n == 300 && ps > 200) }' || missed=1
}

private_of() { # private_of PID…: KiB, all together
  local pid total=0 kb
  for pid; do
    kb=$(awk '/^Private_/ { n += $2 } END { print n; exit NR == 0 }' "/proc/$pid/smaps_rollup") || return
    total=$((total + kb))
  done
  echo "$total"
}

memory() {
  local pid children
  for pid in "${pids[@]}"; do
    children=$(cat "/proc/$pid/task/$pid/children" 2> /dev/null) || true
    [ -n "$children" ] || { echo "the launcher $pid has no process inside" >&2; missed=1; continue; }
    # shellcheck disable=SC2086  # words
    private_of "$pid" $children || { echo "the memory of the launcher $pid cannot be read" >&2; missed=1; }
  done > "$work/private"
  sort -n "$work/private" | awk -v live="$(live)" '{ a[NR] = $1 } END {
    printf "private memory of launcher and init, KiB: median %d, worst %d, of %d; live: %d\n", a[int((NR + 1) / 2)], a[NR], NR, live
    exit NR != live || a[NR] > 1024 }' || missed=1
}

files() { find /run/sandbox /run/systemd/nspawn-uid -type f 2> /dev/null || true; }

left() { # left BEFORE
  local after
  kill "${pids[@]}" 2> /dev/null || true
  wait || true
  after=$(settled "$1")
  echo "$started live ones ended; $traced before: $1, after: $after"
  [ "$1" = "$after" ] || missed=1
}

traces() { # what a start may leave, as $traced says
  echo "$(find /sys/fs/cgroup -type d 2> /dev/null | wc -l) $(find /proc/1/fd 2> /dev/null | wc -l) $(wc -l < /proc/self/mountinfo) $(systemctl list-units --all --plain --no-legend | wc -l)" \
    "$(pgrep -xc sandbox || true) $(files | wc -l)"
}

at_rest() { # the same, once systemd has cleaned up after what ended before
  local before="" now try
  for try in $(seq 20); do
    now=$(traces)
    [ "$now" != "$before" ] || break
    before=$now
    [ "$try" = 20 ] || sleep 1
  done
  echo "$now"
}

settled() { # the same, when it is what it was ($1), or 10 s later
  local try now
  for try in $(seq 50); do
    now=$(traces)
    [ "$now" != "$1" ] || break
    [ "$try" = 50 ] || sleep 0.2
  done
  echo "$now"
}

many() { # many COUNT AT_A_TIME: starts that end at once
  local count=$1 at_a_time=$2 before after start failed
  before=$(at_rest) start=$(date +%s%N)
  seq "$count" | xargs -P "$at_a_time" -I{} sh -c '"$@" || echo failed' sh "$sandbox" run -q "${limits[@]}" -- true > "$work/many" 2>&1
  start=$((($(date +%s%N) - start) / 1000))
  failed=$(wc -l < "$work/many")
  after=$(settled "$before")
  printf '%d starts, %d at a time: %d.%03d ms each, %d lines of failures; %s before: %s, after: %s\n' \
    "$count" "$at_a_time" $((start / count / 1000)) $((start / count % 1000)) "$failed" "$traced" "$before" "$after"
  { [ "$failed" = 0 ] && [ "$before" = "$after" ]; } || missed=1
}

inside() { # inside STAGE COUNT…
  local row=10000 crowd=500 counts=() before
  sandbox=$1/sandbox work=$(mktemp -d /var/tmp/scale-XXXXXX) started=0 missed=0 pids=()
  shift
  for word; do case "$word" in row=*) row=${word#*=} ;; crowd=*) crowd=${word#*=} ;; *) counts+=("$word") ;; esac; done
  results=${SANDBOX_BENCH_RESULTS:-$work}
  # The first makes the slice, which stays.
  "$sandbox" run -q "${limits[@]}" -- true
  "$sandbox" run -q --slice=many "${limits[@]}" -- true
  before=$(at_rest)
  printf '%6s %12s %12s %8s %10s %14s\n' live "ours, ms" "systemd-run" ratio "ps, ms" "list-units, ms"
  for count in "${counts[@]}"; do grow "$count"; measure "$count"; done
  memory
  left "$before"
  many "$row" 1
  many "$crowd" 8
  exit "$missed"
}

if [ "${1:-}" = inside ]; then inside "${@:2}"; fi
here=$(dirname "$(realpath "$0")")
cd "$here/.."
[ $# -gt 0 ] || set -- 0 100 300 1000
# shellcheck source-path=SCRIPTDIR source=lab/staged.sh
. "$here/lab/staged.sh"
run_staged "$here/bench-scale.sh" "$@"
