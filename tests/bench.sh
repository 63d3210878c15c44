#!/bin/bash
# bench.sh — what a start costs, in the tree lab: ours against plain processes, bubblewrap, systemd-run and crun; as root.
#   tests/bench.sh images               see bench-images.sh
#   tests/bench.sh procview             see bench-procview.sh
#   tests/bench.sh scale [COUNT…]       see bench-scale.sh
#   tests/bench.sh network [ROUNDS]     see bench-network.sh
#   tests/bench.sh order                see bench-order.sh
#   tests/bench.sh --report …           all of it, exec and the costs inside, with more peers, as a document: see bench-report.sh
#   tests/bench.sh [ROUNDS [RUNS]]      40 rounds of 5 runs; prints minimum and median in milliseconds and ours / systemd-run; then eight
#                                       times as many rounds of these two alone
# SANDBOX_BIN names the program; else the release build is made. The bar is 0.85 at the median (SANDBOX_BENCH_BAR), back to back
# and with 60 ms of idleness before each start: then exit status 1 says that it was missed.
# Each round measures all commands one after the other, in any order, so what drifts on the machine drifts for all. Many short rounds: how
# processes share the CPUs stays the same for some starts, and decides up to a third of each. Before each there are 0.3 s of rest: what a
# container manager still takes down after it has ended is not to be another's cost.
# systemd-run has two speeds, 11 and 24 ms on two CPUs, and keeps to one for up to a minute: a unit with a weight in system.slice that comes
# and goes makes systemd realize the cgroups of all others there again, unless the one before it is still there. So a few rounds
# say only which one it had: the two alone are measured for minutes.
set -euo pipefail

inside() { # inside STAGE ROUNDS RUNS: runs in the lab
  local stage=$1 rounds=$2 runs=$3 gap round prepare said commands=() turn=() pair bwrap="bwrap --unshare-all --ro-bind / / --proc /proc --dev /dev true"
  local unshare="unshare --user --map-root-user --mount --pid --fork --uts --ipc --net --cgroup"
  [[ $(unshare --help) != *--time* ]] || unshare+=" --time"   # not before util-linux 2.36
  # shellcheck source-path=SCRIPTDIR source=bench/peers.sh
  . "$stage/peers.sh"
  make_root
  make_bundle "$bundle" rootfs "" /bin/true
  let_crun_start
  add start true "true"
  add start unshare "$unshare true"
  add start bubblewrap "$bwrap"
  pair=(-n systemd-run "systemd-run --scope --quiet ${limits[*]} true" -n sandbox "$stage/sandbox run ${limits[*]} -- true")
  add start systemd-run "${pair[2]}"
  add start systemd-run+bwrap "systemd-run --scope --quiet ${limits[*]} $bwrap"
  commands+=("${pair[@]:3}")
  add start crun "crun --systemd-cgroup run --bundle $bundle bench"
  add start runc "runc --systemd-cgroup run --bundle $bundle bench"
  add start nspawn "systemd-nspawn --quiet --pipe --private-network --property=CPUWeight=58 --property=MemoryMax=500M --directory $bundle/rootfs /bin/true"
  add start podman "podman run --rm ${container_limits[*]} bench:1 /bin/true"
  add start docker "docker run --rm ${container_limits[*]} bench:1 /bin/true"
  # With a fallback or a warning it would not be the start that we mean.
  said=$("$stage/sandbox" run "${limits[@]}" -- true 2>&1) || said="status $?: $said"
  [ -z "$said" ] || { echo "bench.sh: the start that is to be measured says: $said" >&2; exit 125; }
  for gap in none 0.06; do
    prepare=(); [ "$gap" = none ] || prepare=(--prepare "sleep $gap")
    for round in $(seq "$rounds"); do measure_round "$results/start-$gap-$round.json" "${prepare[@]}"; done
    table "$gap" "$results/start-$gap"-*.json
  done
  commands=("${pair[@]}")
  for round in $(seq $((8 * rounds))); do measure_round "$results/start-pair-$round.json"; done
  table pair "$results/start-pair"-*.json
}

measure_round() { # measure_round FILE [OPTION…]: all of `commands`, in any order
  in_any_order
  hyperfine -N --setup 'sleep 0.3' --warmup 3 --runs "$runs" "${@:2}" --export-json "$1" "${turn[@]}" > /dev/null 2>&1 ||
    { hyperfine -N --runs 2 "${commands[@]}"; exit 125; }   # once more, to be heard
}

table() { # table GAP|pair JSON…: in the order of `commands`; hyperfine writes one time per line
  local names=() first
  for ((first = 1; first < ${#commands[@]}; first += 3)); do names+=("${commands[first]}"); done
  cat "${@:2}" | awk -v gap="$1" -v list="${names[*]}" -v bar="${SANDBOX_BENCH_BAR:-0.85}" '
    function median(name,    i, j, n, v, a) {
      n = count[name]; for (i = 1; i <= n; i++) a[i] = times[name, i]
      for (i = 2; i <= n; i++) { v = a[i]; for (j = i - 1; j > 0 && a[j] > v; j--) a[j + 1] = a[j]; a[j + 1] = v }
      least[name] = a[1]
      return n % 2 ? a[(n + 1) / 2] : (a[n / 2] + a[n / 2 + 1]) / 2
    }
    /"command":/ { gsub(/^.*"command": "|",?$/, ""); name = $0; next }
    /"times": \[/ { reading = 1; next }
    /\]/ { reading = 0 }
    reading { gsub(/[ ,]/, ""); times[name, ++count[name]] = $0 * 1000 }
    END {
      names = split(list, order, " ")
      printf "\n%s\n%-20s %10s %10s\n", gap == "none" ? "back to back" : gap == "pair" ? "back to back, these two alone" : "after " gap * 1000 " ms of idleness", "", "min ms", "median ms"
      for (i = 1; i <= names; i++) { m[order[i]] = median(order[i]); printf "%-20s %10.2f %10.2f\n", order[i], least[order[i]], m[order[i]] }
      ratio = m["sandbox"] / m["systemd-run"]
      printf "sandbox / systemd-run: %.2f at the minimum, %.2f at the median (bar %.2f)\n", least["sandbox"] / least["systemd-run"], ratio, bar
      exit ratio > bar
    }' || touch /var/tmp/missed
}

if [ "${1:-}" = inside ]; then
  inside "${@:2}"
  [ ! -e /var/tmp/missed ]
  exit
fi
here=$(dirname "$(realpath "$0")")
cd "$here/.."
[ "${1:-}" != scale ] || exec tests/bench-scale.sh "${@:2}"
[ "${1:-}" != --report ] || exec tests/bench-report.sh "${@:2}"
[ "${1:-}" != procview ] || exec tests/bench-procview.sh "${@:2}"
[ "${1:-}" != images ] || exec tests/bench-images.sh "${@:2}"
[ "${1:-}" != order ] || exec tests/bench-order.sh
[ "${1:-}" != network ] || exec tests/bench-network.sh "${@:2}"
# shellcheck source-path=SCRIPTDIR source=lab/staged.sh
. "$here/lab/staged.sh"
run_staged "$here/bench.sh" "${1:-40}" "${2:-5}"
