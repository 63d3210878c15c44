#!/bin/bash
# bench-procview.sh — the truthful /proc beside a real lxcfs (Debian's package), in the lab; as root.
#   tests/bench.sh procview [ROUNDS [READS]]      10 rounds of 100 reads of each file
# Both are asked from a scope with the same limits (MemoryMax=300M CPUQuota=150%). For each file: the total that it tells, and what
# opening it, reading it whole and closing it takes, minimum and median in µs. Then the private memory of the server — ours is what a
# launcher has with a view more than one without —, and how often it woke up in two seconds in which nobody read. The bars: no file
# takes longer than lxcfs's at the median, at most 1024 KiB, not one wake-up; exit status 1 says that one was missed.
# SANDBOX_BIN names the program; else the release build is made. The lab is a view of this machine, so lxcfs is installed here.
set -euo pipefail
limits=(-p MemoryMax=300M -p CPUQuota=150%)
files=(proc/cpuinfo proc/diskstats proc/loadavg proc/meminfo proc/stat proc/swaps proc/uptime sys/devices/system/cpu/online)

# reader PREFIX READS FILE…: `time FILE NANOSECONDS` for each read, and `total FILE WORDS` once
reader='
import os, sys, time
prefix, reads, files = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
def read(path):
    descriptor = os.open(path, os.O_RDONLY)
    parts = []
    while part := os.read(descriptor, 65536):
        parts.append(part)
    os.close(descriptor)
    return b"".join(parts).decode()
def total(file, text):
    lines, words = text.splitlines(), text.split()
    if file.endswith("meminfo"): return words[1] + " kB"
    if file.endswith("cpuinfo"): return str(sum(line.startswith("processor") for line in lines)) + " CPUs"
    if file.endswith("stat") and "disk" not in file: return str(sum(line[:3] == "cpu" and line[3:4].isdigit() for line in lines)) + " CPUs"
    if file.endswith("diskstats"): return str(len(lines)) + " devices"
    if file.endswith("swaps"): return (lines[1].split()[2] if len(lines) > 1 else "0") + " kB"
    return words[0]
for file in files:
    path = os.path.join(prefix, file)
    print("total", file, total(file, read(path)), sep="\t")
    for _ in range(reads):
        start = time.perf_counter_ns()
        read(path)
        print("time", file, time.perf_counter_ns() - start, sep="\t")
'

private_of() { awk '/^Private_/ { n += $2 } END { print n }' "/proc/$1/smaps_rollup"; }

switches_of() { cat /proc/"$1"/task/*/status | awk '/ctxt_switches/ { n += $2 } END { print n }'; }

live() { # live ON|OFF: a sandbox that has read each file and waits; its launcher's number in $launcher
  # shellcheck disable=SC2016  # for the shell inside
  "$sandbox" run --quiet "${limits[@]}" --procview "$1" -- \
    sh -c 'for i in 1 2 3 4 5 6 7 8 9; do for f; do cat "/$f" > /dev/null; done; done; exec sleep infinity' sh "${files[@]}" &
  launcher=$!
  until inner "$launcher"; do sleep 0.1; done
}

inner() { # whether the payload of launcher $1 has come to its sleep
  local stub='' payload=''
  read -r stub 2> /dev/null < "/proc/$1/task/$1/children" || true
  [ -n "$stub" ] || return 1
  read -r payload 2> /dev/null < "/proc/$stub/task/$stub/children" || true
  [ -n "$payload" ] && [ "$(cat "/proc/$payload/comm" 2> /dev/null)" = sleep ]
}

table() { # table OURS THEIRS: medians by sorting
  awk -F '\t' '
    function median(who, file,    i, j, n, v, a) {
      n = count[who, file]; for (i = 1; i <= n; i++) a[i] = time[who, file, i]
      for (i = 2; i <= n; i++) { v = a[i]; for (j = i - 1; j > 0 && a[j] > v; j--) a[j + 1] = a[j]; a[j + 1] = v }
      least = a[1] / 1000
      return (n % 2 ? a[(n + 1) / 2] : (a[n / 2] + a[n / 2 + 1]) / 2) / 1000
    }
    FNR == 1 { who++ }
    $1 == "total" { if (!($2 in seen)) { seen[$2]; order[++names] = $2 } says[who, $2] = $3 }
    $1 == "time" { time[who, $2, ++count[who, $2]] = $3 }
    END {
      printf "%-30s %14s %14s %9s %9s %9s %9s %7s\n", "", "sandbox says", "lxcfs says", "min µs", "median", "lxcfs min", "median", "ratio"
      for (i = 1; i <= names; i++) {
        file = order[i]
        ours = median(1, file); least_ours = least; theirs = median(2, file)
        printf "%-30s %14s %14s %9.1f %9.1f %9.1f %9.1f %7.2f\n", file, says[1, file], says[2, file], least_ours, ours, least, theirs, ours / theirs
        if (ours > theirs) missed = 1
      }
      exit missed
    }' "$1" "$2"
}

memory() { # memory PID-OF-LXCFS
  local with without more before after=0 theirs
  live on; with=$launcher
  live off; without=$launcher
  more=$(($(private_of "$with") - $(private_of "$without")))
  before=$(switches_of "$with") theirs=$(switches_of "$1")
  sleep 2
  after=$(($(switches_of "$with") - before)) theirs=$(($(switches_of "$1") - theirs))
  echo "private memory, KiB: sandbox $more for the view of one sandbox ($(private_of "$with") with it), lxcfs $(private_of "$1") for all"
  echo "wake-ups in 2 s: sandbox $after, lxcfs $theirs"
  kill "$with" "$without"
  wait "$with" "$without" || true
  [ "$more" -le 1024 ] && [ "$after" = 0 ]
}

inside() { # inside STAGE ROUNDS READS
  local sandbox=$1/sandbox server status=0 scope=(systemd-run --scope --quiet "${limits[@]}" unshare --pid --fork)
  mkdir -p /var/lib/lxcfs
  lxcfs -f -l -p /run/lxcfs.pid /var/lib/lxcfs > /run/lxcfs.log 2>&1 &
  server=$!
  until [ -e /var/lib/lxcfs/proc/meminfo ]; do
    kill -0 "$server" 2> /dev/null || { cat /run/lxcfs.log; exit 1; }
    sleep 0.1
  done
  for _ in $(seq "$2"); do
    "$sandbox" run --quiet "${limits[@]}" -- /usr/bin/python3 -c "$reader" / "$3" "${files[@]}" < /dev/null >> /run/ours
    "${scope[@]}" /usr/bin/python3 -c "$reader" /var/lib/lxcfs "$3" "${files[@]}" < /dev/null >> /run/theirs
  done
  table /run/ours /run/theirs || status=1
  memory "$server" || status=1
  kill "$server"
  wait "$server" || true
  return $status
}

if [ "${1:-}" = inside ]; then inside "${@:2}"; exit; fi
here=$(dirname "$(realpath "$0")")
cd "$here/.."
[ "$(id -u)" = 0 ] || { echo "bench-procview.sh needs root" >&2; exit 125; }
if ! command -v lxcfs > /dev/null; then
  apt-get -qq update
  DEBIAN_FRONTEND=noninteractive apt-get -qq -y install --no-install-recommends lxcfs < /dev/null > /dev/null
fi
# shellcheck source-path=SCRIPTDIR source=lab/staged.sh
. tests/lab/staged.sh
# shellcheck disable=SC2034  # run_staged reads it
staged_in=view
run_staged "$here/bench-procview.sh" "${1:-10}" "${2:-100}"
