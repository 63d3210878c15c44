#!/bin/bash
# bench-report.sh — everything that bench.sh measures, in the tree lab with all peers, as a document; as root.
#   tests/bench.sh --report [FILE] [--rounds N] [--runs N] [--live "COUNT…"]
# FILE is packaging/BENCHMARKS.md by default; one SVG plot a family, bench-*.svg, is written beside it, and in README.md what stands
# between the two `bench:` marks, unless the machine was busy or FILE is another. 30 rounds of 6 runs; 0 100 300 1000 live ones.
# Families: start back to back, start after 60 ms of idleness, the steps of a start, exec, start with N live, what it costs inside.
# Peers that the tree has not are taken from Debian's archive (runc, systemd-container, podman, docker.io, and jq); each that does not run
# here is named in the document, with the reason. Needs apt-get, gcc, rustc, python3. SANDBOX_BIN names the program; else the release
# build is made. Missed bars do not fail it: they are in the document.
set -euo pipefail
here=$(dirname "$(realpath "$0")")
packages=(runc systemd-container podman docker.io jq)

die() { echo "bench-report.sh: $*" >&2; exit 125; }

# --- in the lab -------------------------------------------------------------------------------------------------------------------

install_peers() {
  local package
  printf '#!/bin/sh\nexit 101\n' > /usr/sbin/policy-rc.d   # dockerd is to start with our settings
  chmod 755 /usr/sbin/policy-rc.d
  for package in "$stage"/debs/*.deb; do [ -e "$package" ] || return 0; done
  DEBIAN_FRONTEND=noninteractive dpkg --install --force-confold "$stage"/debs/*.deb > "$results/dpkg.log" 2>&1 || tail -n 5 "$results/dpkg.log"
  systemctl daemon-reload
}

start_peers() { # their daemons, and the root as an image
  command -v dockerd > /dev/null || return 0
  mkdir -p /etc/docker
  echo '{"storage-driver":"overlay2","iptables":false,"ip6tables":false,"bridge":"none"}' > /etc/docker/daemon.json
  systemctl start docker || journalctl --no-pager -u docker -n 5
  tar -C "$bundle/rootfs" -c . | docker import - bench:1 > /dev/null || true
  tar -C "$bundle/rootfs" -c . | podman import -q - bench:1 > /dev/null || true
}

versions() {
  local name
  for name in bubblewrap:bwrap crun:crun runc:runc nspawn:systemd-nspawn podman:podman docker:docker hyperfine:hyperfine; do
    ! command -v "${name#*:}" > /dev/null || printf '%s\t%s\n' "${name%:*}" "$("${name#*:}" --version | head -n1)"
  done >> "$results/facts.tsv"
  printf 'systemd in the lab\t%s\n' "$(systemctl --version | head -n1)" >> "$results/facts.tsv"
}

steps() { # what `--timings` says of each start: when a step was done, in milliseconds since the program began
  local start
  for start in $(seq $((rounds * runs))); do
    "$stage/sandbox" run -q --timings "${limits[@]}" -- true 2>&1 > /dev/null |
      awk -v start="$start" -v OFS='\t' '$2 == "ms" { at = $1; sub(/^.*\+ *[0-9.]+ +/, ""); print start, $0, at }' >> "$results/steps.tsv"
  done
}

start_for_exec() { # start_for_exec NAME START EXEC: what is started keeps the files that it is given open
  ! command -v "${2%% *}" > /dev/null || bash -c "$2" < /dev/null > /dev/null 2>> "$results/exec.log" || true
  add exec "$1" "$3"
}

family_exec() {
  local commands=() turn=() round keepers=(/bin/sleep infinity)
  make_bundle "$bundle" rootfs "" "${keepers[@]}"
  "$stage/sandbox" run --detach -q --unit=bench "${limits[@]}" -- sleep infinity > /dev/null
  commands=(-n sandbox "$stage/sandbox exec bench true"
    -n nsenter "nsenter --all --target $(systemctl show -P MainPID bench.service) true")
  start_for_exec crun "crun --systemd-cgroup run --detach --bundle $bundle exec-crun" "crun exec exec-crun /bin/true"
  start_for_exec runc "runc --systemd-cgroup run --detach --bundle $bundle exec-runc" "runc exec exec-runc /bin/true"
  start_for_exec podman "podman run -d --name bench ${container_limits[*]} bench:1 ${keepers[*]}" "podman exec bench /bin/true"
  start_for_exec docker "docker run -d --name bench ${container_limits[*]} bench:1 ${keepers[*]}" "docker exec bench /bin/true"
  left_out exec nspawn "it has no exec for a container that did not boot"
  for round in $(seq "$rounds"); do
    in_any_order
    hyperfine -N --warmup 3 --runs "$runs" --export-json "$results/exec-$round.json" "${turn[@]}" > /dev/null 2>&1
  done
  save_docker_filter
  "$stage/sandbox" stop bench > /dev/null
  for peer in crun runc; do $peer delete --force "exec-$peer" > /dev/null 2>&1 || true; done
  for peer in podman docker; do $peer rm -f bench > /dev/null 2>&1 || true; done
}

save_docker_filter() { # the system call filter that dockerd hands to its runtime, as lines for a config.json
  local id
  id=$(docker inspect -f '{{.Id}}' bench 2> /dev/null) || return 0
  jq -r '"\"seccomp\": \(.linux.seccomp),"' "/run/containerd/io.containerd.runtime.v2.task/moby/$id/config.json" > /var/tmp/docker-filter ||
    rm -f /var/tmp/docker-filter
}

inside_of() { # inside_of PEER: the command, in `words`
  # On one CPU: whether the two ends of a connection run on one or on two decides 15 or 45 us, and chance decides that.
  words=(/bin/busybox taskset "$(printf %x $((1 << ($(nproc) - 1))))" "$bench/inside" "$bench/files" 5)
  case "$1" in
    "no sandbox") ;;
    "bwrap, empty filter")
      words=(bwrap --seccomp 9 --bind /var/tmp/overlay/root / --dev /dev --proc /proc -- "${words[@]}")
      words=(systemd-run --scope -q "${limits[@]}" bash -c 'exec "$@" 9< /var/tmp/empty-filter' bash "${words[@]}") ;;
    sandbox) words=("$stage/sandbox" run -q "${limits[@]}" -- "${words[@]}") ;;
    "sandbox, no filter, no map")
      words=("$stage/sandbox" run -q --seccomp unconfined --procview off --userns identity "${limits[@]}" -- "${words[@]}") ;;
    crun)
      make_bundle /var/tmp/bundle-plain /var/tmp/overlay/root "" "${words[@]}"
      words=(crun --systemd-cgroup run --bundle /var/tmp/bundle-plain inside) ;;
    *Docker*)
      make_bundle /var/tmp/bundle-filter /var/tmp/overlay/root /var/tmp/docker-filter "${words[@]}"
      words=(crun --systemd-cgroup run --bundle /var/tmp/bundle-filter inside) ;;
    *) words=("$1" run --rm "${container_limits[@]}" bench:1 "${words[@]}") ;;
  esac
}

family_inside() {
  local round peer names=("no sandbox") words=() said
  mkdir -p /var/tmp/overlay/{upper,work,root}
  mount -t overlay overlay -o "lowerdir=$bundle/rootfs,upperdir=/var/tmp/overlay/upper,workdir=/var/tmp/overlay/work" /var/tmp/overlay/root
  printf '\6\0\0\0\0\0\377\177' > /var/tmp/empty-filter   # one struct sock_filter: return SECCOMP_RET_ALLOW
  for peer in "bwrap, empty filter" sandbox "sandbox, no filter, no map" crun "crun, Docker's filter" podman docker; do
    case "$peer" in
      *Docker*) [ -e /var/tmp/docker-filter ] || { left_out inside "$peer" "dockerd, which has it, does not run here"; continue; } ;;
      sandbox*) ;;
      *) command -v "${peer%%,*}" > /dev/null || { left_out inside "$peer" "not installed here"; continue; } ;;
    esac
    inside_of "$peer"
    if said=$("${words[@]}" 2>&1 < /dev/null); then names+=("$peer"); else left_out inside "$peer" "${said##*$'\n'}"; fi
  done
  # What differs from run to run is larger than what differs between them: so many runs.
  for round in $(seq $((rounds * runs))); do
    while read -r peer; do
      inside_of "$peer"
      "${words[@]}" < /dev/null | awk -v peer="$peer" -v round="$round" -v OFS='\t' '{ print peer, $1, $2, round }' >> "$results/inside.tsv"
    done < <(printf '%s\n' "${names[@]}" | shuf)
  done
  umount /var/tmp/overlay/root
}

inside() { # inside STAGE ROUNDS RUNS LIVE…
  stage=$1 rounds=$2 runs=$3
  shift 3
  export SANDBOX_BENCH_RESULTS=$stage/results SANDBOX_BENCH_STARTS=$((4 * rounds * runs))
  # shellcheck source-path=SCRIPTDIR source=bench/peers.sh
  . "$stage/peers.sh"
  mkdir -p "$bench/files"
  install -m755 "$stage/inside" "$bench/inside"
  for n in $(seq 500); do seq "$n" $((n + 200)) > "$bench/files/$n"; done
  install_peers
  versions
  make_root
  let_crun_start
  start_peers
  bash "$stage/bench.sh" inside "$stage" "$rounds" "$runs" || [ $? = 1 ]   # a missed bar
  steps
  family_exec
  family_inside
  systemctl stop docker docker.socket containerd 2> /dev/null || true
  bash "$stage/bench-scale.sh" inside "$stage" "$@" | tee "$results/scale.txt" || true
}

# --- outside ----------------------------------------------------------------------------------------------------------------------

parse() {
  file=packaging/BENCHMARKS.md rounds=30 runs=6 live="0 100 300 1000" said="tests/bench.sh --report"
  [ $# = 0 ] || said+=$(printf ' %q' "$@")
  while [ $# -gt 0 ]; do
    case "$1" in
      --rounds) rounds=${2:?--rounds needs a number}; shift 2 ;;
      --runs) runs=${2:?--runs needs a number}; shift 2 ;;
      --live) live=${2:?--live needs numbers}; shift 2 ;;
      -*) die "what is '$1'? See the head of $0" ;;
      *) file=$1; shift ;;
    esac
  done
}

fetch_peers() { # fetch_peers DIR: their packages, and those that these need and the tree has not
  local status tarball
  tarball=$(tests/tree.sh tarball bookworm)
  if ! grep -q '^VERSION_CODENAME=bookworm$' /etc/os-release; then
    echo "bench-report.sh: ${packages[*]} are left out: the lab's tree is bookworm, and this machine's package lists are of another suite" >&2
    return
  fi
  status=$(mktemp)
  tar -xOf "$tarball" ./var/lib/dpkg/status > "$status"
  mkdir -p "$SANDBOX_TEST_CACHE/peers/partial"
  apt-get -qq -o Dir::State::status="$status" -o Dir::Cache::archives="$SANDBOX_TEST_CACHE/peers" -o APT::Install-Recommends=false \
    -o Debug::NoLocking=true --download-only -y install "${packages[@]}" > /dev/null
  apt-get -qq -o Dir::State::status="$status" -o APT::Install-Recommends=false --print-uris -y install "${packages[@]}" |
    while read -r _ name _; do cp "$SANDBOX_TEST_CACHE/peers/$name" "$1/"; done
  rm -f "$status"
}

load() { cut -d' ' -f1-3 /proc/loadavg; }

facts() {
  printf 'command\t%s\n' "$said"
  printf 'date\t%s\n' "$(date -u '+%F %H:%M UTC')"
  printf 'machine\t%s\n' "$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n1), $(nproc) CPUs, $(awk '/^MemTotal/ { printf "%.1f GiB", $2 / 1048576 }' /proc/meminfo)"
  printf 'load\t%s\n' "$(load)"
  printf 'cpus\t%s\n' "$(nproc)"
  printf 'kernel\t%s\n' "$(uname -sr), cgroup $([ -e /sys/fs/cgroup/cgroup.controllers ] && echo v2 || echo 'v1, hybrid')"
  printf 'sandbox\t%s\n' "$("$SANDBOX_BIN" --version), $(git describe --always --dirty 2> /dev/null || true)"
}

if [ "${1:-}" = inside ]; then inside "${@:2}"; exit; fi
cd "$here/.."
parse "$@"
[ "$(id -u)" = 0 ] || die "needs root"
export SANDBOX_TEST_CACHE=${SANDBOX_TEST_CACHE:-/var/cache/sandbox-test}
# shellcheck source-path=SCRIPTDIR source=rust.sh
. tests/rust.sh
find_cargo
if [ -z "${SANDBOX_BIN:-}" ]; then
  target=$(program_target)
  RUSTFLAGS=$static_flags as_owner cargo build -q --release --target "$target"
  SANDBOX_BIN=${CARGO_TARGET_DIR:-target}/$target/release/sandbox
fi
stage=$(mktemp -d /var/tmp/sandbox-stage-XXXXXX)
trap 'rm -rf "$stage"' EXIT
mkdir "$stage/debs" "$stage/results"
install -m755 "$SANDBOX_BIN" "$stage/sandbox"
install -m755 tests/bench.sh tests/bench-scale.sh tests/bench-report.sh tests/bench/peers.sh "$stage/"
rustc --edition 2024 -O -C target-feature=+crt-static --target "$(host_target)" -o "$stage/inside" tests/bench/inside.rs
fetch_peers "$stage/debs"
facts > "$stage/results/facts.tsv"
# shellcheck disable=SC2086  # a list of numbers
tests/lab/lab.sh run --tree --bind "$stage" -- bash "$stage/bench-report.sh" inside "$stage" "$rounds" "$runs" $live
printf 'load after\t%s\n' "$(load)" >> "$stage/results/facts.tsv"
python3 tests/bench/report.py "$stage/results" "$file"
