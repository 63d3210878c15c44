#!/bin/bash
# programs.sh — what real programs say of memory and CPUs inside a sandbox, in the lab: procps, busybox, util-linux, python with psutil,
# htop, a JVM, node, Go and Rust; as root. Each must say the sandbox's limits, and without limits the machine's.
#   tests/lab/programs.sh                prints a table; SANDBOX_BIN names the program, else the debug build is made
#   tests/lab/programs.sh --if-there     nothing at all where a program is missing: what run.sh calls, which installs none of them
# The lab is a copy-on-write view of this machine, so what is missing is installed here. Exit status 1: a program said something else.
set -euo pipefail
packages=(procps busybox-static python3-psutil htop tmux nodejs openjdk-17-jre-headless golang-go)
commands=(free busybox python3 htop tmux node java go rustc)

# --- in the sandbox: a line NAME MEMORY CPUS for each program, MiB; "-" where it has no word for it ----------------------------------

programs() {
  local stage=$1 setting screen
  export HOME=/tmp
  say() { printf '%s %s %s\n' "$1" "${2:-nothing}" "${3:-nothing}"; }
  say free "$(free -m | awk '/^Mem/ { print $2 }')" -
  say top "$(top -b -n1 | awk '/ Mem *:/ { print int($4 + 0.5) }')" "$(top -b -n1 -1 -w 200 | grep -o '%Cpu[0-9]' | wc -l)"
  say vmstat "$(vmstat -s -S m | awk '/total memory/ { print int($1 * 1000000 / 1048576 + 0.5) }')" -
  say busybox-free "$(busybox free -m | awk '/^Mem/ { print $2 }')" -
  say nproc - "$(nproc)"
  say busybox-nproc - "$(busybox nproc)"
  say getconf "$(($(getconf _PHYS_PAGES) * $(getconf PAGESIZE) / 1048576))" "$(getconf _NPROCESSORS_ONLN)"
  say getconf-configured - "$(getconf _NPROCESSORS_CONF)"
  say lscpu - "$(lscpu -p=cpu | grep -vc '#')"
  say directories - "$(find /sys/devices/system/cpu/ -maxdepth 1 -name 'cpu[0-9]*' -type d | wc -l)"
  say memory-nodes "$(awk '/MemTotal/ { sum += $4 } END { print int(sum / 1024) }' /sys/devices/system/node/node*/meminfo)" \
    "$(find /sys/devices/system/node/ -maxdepth 2 -name 'cpu[0-9]*' | wc -l)"
  say python "$(/usr/bin/python3 -c 'import os; print(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20)')" \
    "$(/usr/bin/python3 -c 'import os; print(os.cpu_count())')"
  say psutil "$(/usr/bin/python3 -c 'import psutil; print(psutil.virtual_memory().total >> 20)')" "$(/usr/bin/python3 -c 'import psutil; print(psutil.cpu_count())')"
  say psutil-times - "$(/usr/bin/python3 -c 'import psutil; print(len(psutil.cpu_times(percpu=True)))')"
  say node "$(node -p 'Math.floor(os.totalmem() / 1048576)')" "$(node -p 'os.cpus().length')"
  # With its own reading of cgroups, and without.
  for setting in + -; do
    java "-XX:${setting}UseContainerSupport" -Xlog:gc+init:file=/tmp/gc -XX:+PrintFlagsFinal -version > /tmp/flags 2> /dev/null
    say "java$setting" "$(sed -n 's/.*Memory: \([0-9]*\)M$/\1/p' /tmp/gc)" "$(sed -n 's/.*CPUs: .*, \([0-9]*\) available$/\1/p' /tmp/gc)"
    # Runtime.maxMemory(), the heap's bound: a quarter, half of what is little.
    say "java$setting-heap" "$(awk '/ MaxHeapSize / { print int($4 / 1048576) }' /tmp/flags)" -
  done
  say go - "$("$stage/go-cpus")"
  say rust - "$("$stage/rust-cpus")"
  tmux -L lab -f /dev/null new-session -d -x 120 -y 30 htop
  until screen=$(tmux -L lab capture-pane -p) && grep -q 'Mem\[.*/' <<< "$screen"; do sleep 0.2; done
  say htop "$(sed -n 's/.*Mem\[.*\/\([0-9.]*\)\([MG]\).*/\1 \2/p' <<< "$screen" | awk '{ print int($1 * ($2 == "G" ? 1024 : 1) + 0.5) }')" \
    "$(grep -oE '(^|[^0-9A-Za-z])([0-9]+|CPU)\[' <<< "$screen" | wc -l)"
  tmux -L lab kill-server
}

# --- in the lab -----------------------------------------------------------------------------------------------------------------------

check() { # check MEMORY CPUS: the lines of programs against what they should say; a tenth of a GiB is what htop rounds to
  awk -v memory="$1" -v cpus="$2" '
    function off(said, want,    d) { d = said - want; return d < 0 ? -d : d }
    { bad = "" }
    $2 != "-" && $1 ~ /-heap$/ && !($2 > 0 && $2 <= memory / 2 + 1) { bad = "more than half of " memory " MiB" }
    $2 != "-" && $1 !~ /-heap$/ && ($2 == "nothing" || off($2, memory) > ($1 == "htop" && memory > 1024 ? 103 : 1)) { bad = memory " MiB" }
    $3 != "-" && $3 != cpus { bad = bad " " cpus " CPUs" }
    { printf "  %-20s %8s %6s%s\n", $1, $2, $3, bad == "" ? "" : "   WRONG, it is " bad; if (bad != "") wrong++ }
    END { if (NR < 20) { print "  only " NR " programs ran"; wrong++ } exit wrong > 0 }'
}

inside() { # inside STAGE
  local stage=$1 wrong=0 host cpus one few
  host=$(awk '/^MemTotal/ { print int($2 / 1024) }' /proc/meminfo) cpus=$(grep -c ^processor /proc/cpuinfo)
  few=$((cpus < 2 ? cpus : 2))
  one=(--cpuset-cpus 0)
  # cgroup v1 has no cpuset of systemd's: the mask of the process has the same effect.
  [ -e /sys/fs/cgroup/cgroup.controllers ] || one=(-p CPUAffinity=0)
  run() { # run MEMORY CPUS FLAG…
    local memory=$1 count=$2; shift 2
    echo "${*:-without limits}: $memory MiB, $count CPUs"
    "$stage/sandbox" run --quiet -v "$stage:$stage:ro" "$@" -- bash -c "$(declare -f programs); programs $stage" < /dev/null | check "$memory" "$count" || wrong=1
  }
  run "$host" "$cpus"
  run 300 "$few" -p MemoryMax=300M -p CPUQuota=150%
  run 300 1 -p MemoryMax=300M -p CPUQuota=150% "${one[@]}"
  return $wrong
}

if [ "${1:-}" = inside ]; then inside "$2"; exit; fi
cd "$(dirname "$(realpath "$0")")/../.."
[ "$(id -u)" = 0 ] || { echo "programs.sh needs root" >&2; exit 125; }
missing=()
export PATH="$PATH:/root/.cargo/bin"
for command in "${commands[@]}"; do command -v "$command" > /dev/null || missing+=("$command"); done
/usr/bin/python3 -c 'import psutil' 2> /dev/null || missing+=(python3-psutil)
if [ ${#missing[@]} -gt 0 ]; then
  [ "${1:-}" != --if-there ] || { echo "programs.sh: left out, not installed: ${missing[*]}"; exit 0; }
  apt-get -qq update
  DEBIAN_FRONTEND=noninteractive apt-get -qq -y install --no-install-recommends "${packages[@]}" < /dev/null > /dev/null
fi
# shellcheck source-path=SCRIPTDIR source=staged.sh
. tests/lab/staged.sh
stage_program debug
install -m755 "$0" "$stage/script"
echo 'fn main() { println!("{}", std::thread::available_parallelism().unwrap()) }' > "$stage/cpus.rs"
rustc -o "$stage/rust-cpus" "$stage/cpus.rs"
printf 'package main\nimport ("fmt"; "runtime")\nfunc main() { fmt.Println(runtime.NumCPU()) }\n' > "$stage/cpus.go"
GOCACHE="$stage/cache" GO111MODULE=off go build -o "$stage/go-cpus" "$stage/cpus.go"
rm -rf "$stage/cache"
tests/lab/lab.sh run --bind "$stage" -- bash "$stage/script" inside "$stage"
