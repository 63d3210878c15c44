#!/bin/bash
# bench-scale.sh — many sandboxes at once, in the tree lab; as root.
#   tests/bench.sh scale [COUNT…]     0 100 300 1000 by default
# At each number of live ones: what one more start costs, ours and systemd-run --scope with the same limits, in one hyperfine run;
# what `sandbox ps` and `systemctl list-units` take. At the largest: the private memory of launcher and init of each, from
# smaps_rollup. After all have ended: what is left. The bars: a start is no slower than systemd-run's; ps takes less than
# 200 ms at 300; at most 1 MiB private for each; nothing left. Exit status 1 says that one was missed.
# SANDBOX_BIN names the program; else the release build is made.
set -euo pipefail
limits=(-p CPUWeight=58 -p MemoryMax=500M)

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

measure() { # measure COUNT: one line of the table
  local ours theirs ps list
  hyperfine -N --warmup 3 --runs "${SANDBOX_BENCH_RUNS:-40}" --export-json "$results/scale-$1.json" \
    -n systemd-run "systemd-run --scope --quiet ${limits[*]} true" -n sandbox "$sandbox run ${limits[*]} -- true" > /dev/null 2>&1
  read -r theirs ours < <(awk '/"median":/ { gsub(/[ ,]/, ""); sub(/"median":/, ""); printf "%s ", $0 * 1000 } END { print "" }' "$results/scale-$1.json")
  hyperfine -N --warmup 1 --runs 10 --export-json "$work/times.json" "$sandbox ps -q" "systemctl list-units --no-legend" > /dev/null 2>&1
  read -r ps list < <(awk '/"median":/ { gsub(/[ ,]/, ""); sub(/"median":/, ""); printf "%s ", $0 * 1000 } END { print "" }' "$work/times.json")
  awk -v n="$1" -v ours="$ours" -v theirs="$theirs" -v ps="$ps" -v list="$list" 'BEGIN {
    printf "%6d %12.2f %12.2f %8.2f %10.1f %14.1f\n", n, ours, theirs, ours / theirs, ps, list
    exit (ours / theirs > (n ? 1 : 0.85)) || (n == 300 && ps > 200) }' || missed=1
}

private_of() { # private_of PID…: KiB, all together
  local pid total=0 kb
  for pid; do
    kb=$(awk '/^Private_/ { n += $2 } END { print n }' "/proc/$pid/smaps_rollup")
    total=$((total + kb))
  done
  echo "$total"
}

memory() {
  local pid
  for pid in "${pids[@]}"; do
    # shellcheck disable=SC2046  # words
    private_of "$pid" $(cat "/proc/$pid/task/$pid/children") || true
  done | sort -n | awk '{ a[NR] = $1 } END { printf "private memory of launcher and init, KiB: median %d, worst %d, of %d\n", a[int((NR + 1) / 2)], a[NR], NR
    exit a[NR] > 1024 }' || missed=1
}

files() { find /run/sandbox -type f; }

left() {
  local mounts_now
  kill "${pids[@]}" 2> /dev/null || true
  wait || true
  sleep 1
  mounts_now=$(wc -l < /proc/self/mountinfo)
  echo "left at the end: $(live) units, $((mounts_now - mounts)) mounts, $(pgrep -xc sandbox || true) processes, $(files | wc -l) files"
  [ "$(live)" = 0 ] && [ "$mounts_now" = "$mounts" ] && ! pgrep -x sandbox > /dev/null && [ -z "$(files)" ] || missed=1
}

inside() { # inside STAGE COUNT…
  sandbox=$1/sandbox work=$(mktemp -d /var/tmp/scale-XXXXXX) started=0 missed=0 pids=()
  shift
  results=${SANDBOX_BENCH_RESULTS:-$work}
  mounts=$(wc -l < /proc/self/mountinfo)
  printf '%6s %12s %12s %8s %10s %14s\n' live "ours, ms" "systemd-run" ratio "ps, ms" "list-units, ms"
  for count; do grow "$count"; measure "$count"; done
  memory
  left
  exit "$missed"
}

if [ "${1:-}" = inside ]; then inside "${@:2}"; fi
here=$(dirname "$(realpath "$0")")
cd "$here/.."
[ $# -gt 0 ] || set -- 0 100 300 1000
# shellcheck source-path=SCRIPTDIR source=lab/staged.sh
. "$here/lab/staged.sh"
run_staged "$here/bench-scale.sh" "$@"
