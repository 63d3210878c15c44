#!/bin/bash
# run.sh — install what is missing and run everything; as root.
#   tests/run.sh                    format and lint checks, unit and golden tests, live tests in the lab and in the VM matrix
#   tests/run.sh --check | --unit | --lab | --vm [LANE]     only these parts (they add up); LANE: see vm/vm.sh
#   tests/run.sh --fuzz [SECONDS]   only the fuzz targets (src/fuzz.rs), each for so long (300); an input that fails stays in tests/fuzz/TARGET
#   tests/run.sh [PART…] FILTER     only tests with FILTER in their name
# Trees and images are cached in $SANDBOX_TEST_CACHE (/var/cache/sandbox-test), since a CI run starts from a fresh clone.
set -euo pipefail
# Who starts this in the background (nohup, &) leaves signals ignored that tests send; a shell cannot undo that for itself.
[ -n "${SANDBOX_TEST_SIGNALS:-}" ] || SANDBOX_TEST_SIGNALS=1 exec env --default-signal=HUP,INT,QUIT bash "$(realpath "$0")" "$@"
cd "$(dirname "$(realpath "$0")")/.."
export SANDBOX_TEST_CACHE=${SANDBOX_TEST_CACHE:-/var/cache/sandbox-test}
all_lanes="bullseye bullseye-v1 bullseye-legacy bookworm trixie trixie-selinux sid"
cow_areas="bed/ workflow/ hostview/ namespaces/user_fallback"   # what also runs on a copy-on-write root, where only identity is possible
selinux_areas="bed/ labels/ confinement/ workflow/"   # what also runs under SELinux
legacy_areas="bed/ limits/ workflow/ units/ daily/"   # what also runs where there is no unified hierarchy at all
parts="" lanes="" filter="" fuzz_seconds=300
peers=(skopeo umoci docker-registry podman docker.io apache2-utils)   # the tests start their own servers of these
rows=() total_passed=0 total_failed=0 total_ignored=0
# shellcheck source-path=SCRIPTDIR source=rust.sh
. tests/rust.sh

die() { echo "run.sh: $*" >&2; exit 125; }

parse() {
  while [ $# -gt 0 ]; do
    case "$1" in
      --check | --unit | --lab) parts+=" ${1#--}" ;;
      --fuzz) parts+=" fuzz"; if [[ ${2:-} =~ ^[0-9]+$ ]]; then fuzz_seconds=$2; shift; fi ;;
      --vm) parts+=" vm"; case " $all_lanes " in *" ${2:-none} "*) lanes+=" $2"; shift ;; esac ;;
      -h | --help) sed -n '2,7p' "$0"; exit 0 ;;
      -*) die "what is '$1'? See the head of $0" ;;
      *) filter=$1 ;;
    esac
    shift
  done
  lanes=${lanes:-$all_lanes}
  if [ -z "$parts" ]; then parts="unit lab vm"; [ -n "$filter" ] || parts="check $parts"; fi
}

wants() { case " $parts " in *" $1 "*) return 0 ;; *) return 1 ;; esac; }

# --- what the machine needs -------------------------------------------------------------------------------------------------------

install_missing() {
  local package missing=() needed=(gcc libc6-dev jq)
  ! wants lab || needed+=(systemd dbus libpam-systemd dbus-user-session util-linux iproute2 procps mmdebstrap e2fsprogs xz-utils)
  ! wants vm || needed+=(qemu-system-x86 mmdebstrap e2fsprogs xz-utils zstd)
  ! wants check || needed+=(shellcheck)
  ! wants fuzz || needed+=(g++)
  # What tests/image and lab/docker.sh compare with.
  ! wants unit || needed+=("${peers[@]}" libcap2-bin openssl xz-utils)
  ! wants lab || needed+=("${peers[@]}" libcap2-bin attr busybox-static crun python3)
  if wants lab && [ -z "$filter" ]; then needed+=(dpkg-dev binutils lintian man-db); fi
  if wants vm && [ -z "$filter" ]; then needed+=(dpkg-dev binutils); fi
  command -v apt-get > /dev/null ||
    { echo "run.sh: no apt-get here: a part that lacks something of this fails, the others run: ${needed[*]}"; return 0; }
  for package in "${needed[@]}"; do
    dpkg-query -W -f '${db:Status-Status}\n' "$package" 2> /dev/null | grep -qx installed || missing+=("$package")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  echo "run.sh: installing ${missing[*]}"
  apt-get -qq update
  quietly_install "${missing[@]}"
}

quietly_install() { # no service of what is installed for the tests starts, now or at the next boot: dockerd changes the firewall, and
  local policy=/usr/sbin/policy-rc.d unit units=() # Debian's docker-registry listens on all addresses
  for unit in docker.service docker.socket containerd.service docker-registry.service podman.socket podman.service podman-auto-update.timer \
    podman-restart.service; do
    [ -e "/usr/lib/systemd/system/$unit" ] || [ -e "/lib/systemd/system/$unit" ] || units+=("$unit")
  done
  [ ! -e $policy ] || policy=
  [ -z "$policy" ] || { printf '#!/bin/sh\nexit 101\n' > $policy; chmod 755 $policy; }
  local status=0
  DEBIAN_FRONTEND=noninteractive apt-get -qq -y install --no-install-recommends "$@" < /dev/null > /dev/null || status=$?
  [ -z "$policy" ] || rm -f $policy
  for unit in "${units[@]}"; do systemctl --quiet disable "$unit" > /dev/null 2>&1 || true; done
  return $status
}

# --- steps and their table -----------------------------------------------------------------------------------------------------------

count() { # count LOG STATUS SECONDS BED: a row from the "test result:" lines; a step without any counts as one test
  local passed failed ignored
  read -r passed failed ignored < <(awk '/^test result: / {
      for (i = 2; i <= NF; i++) { if ($i == "passed;") p += $(i - 1); if ($i == "failed;") f += $(i - 1); if ($i == "ignored;") g += $(i - 1) }
      seen = 1 }
    END { if (!seen) p = 0; print p + 0, f + 0, g + 0 }' "$1")
  if ! grep -q '^test result: ' "$1" && [ "$2" = 0 ]; then passed=1; fi
  if [ "$2" != 0 ] && [ "$failed" = 0 ]; then failed=1; fi   # it did not get as far as a result
  rows+=("$(printf '%-16s %7s %7s %8s %8s' "$4" "$passed" "$failed" "$ignored" "$3")")
  total_passed=$((total_passed + passed)) total_failed=$((total_failed + failed)) total_ignored=$((total_ignored + ignored))
}

step() { # step BED CMD…: runs it, shows it, counts it; a failure does not keep the others from running
  local bed=$1 start=$SECONDS status=0; shift
  echo "=== $bed"
  "$@" 2>&1 < /dev/null | tee "$logs/$bed" || status=$?
  count "$logs/$bed" "$status" $((SECONDS - start)) "$bed"
}

check_scripts() { { grep -rlE '^#!/bin/(ba)?sh' tests examples packaging .ci 2> /dev/null || true; } | xargs -r -d '\n' shellcheck -x; }

unit_tests() { # everything but the live tests and those that need root
  local names=() file
  for file in tests/*.rs tests/*/main.rs; do
    case "$file" in
      tests/live/main.rs | tests/image/main.rs | *'*'*) ;;
      */main.rs) file=${file%/main.rs}; names+=(--test "${file##*/}") ;;
      *) file=${file%.rs}; names+=(--test "${file##*/}") ;;
    esac
  done
  as_owner cargo test --target "$target" --bins "${names[@]}" -- ${filter:+"$filter"}
}

image_tests() { # as root, beside the peers; one that is missing is a failure
  local tests
  tests=$(test_program "$target" image) || return
  SANDBOX_TEST_MUST_RUN=1 "$tests" ${filter:+"$filter"}
}

build() { # leaves static binaries in $stage, where tester can run them too
  local name program product
  product=$(program_target)
  as_owner cargo build --release --target "$product" || return
  install -m755 "${CARGO_TARGET_DIR:-target}/$product/release/sandbox" "$stage/sandbox" || return
  for name in live inject; do
    program=$(test_program "$target" "$name") || return
    install -m755 -s "$program" "$stage/$name" || return
  done
}

build_fuzz() { # $stage/fuzz: libFuzzer over the targets; rustc, a stable one, puts counters of covered code into our crate, no sanitizer
  local coverage=(-C passes=sancov-module) option
  for option in level=4 inline-8bit-counters pc-table trace-compares; do coverage+=(-C "llvm-args=-sanitizer-coverage-$option"); done
  # Not static: libFuzzer looks for functions with dlsym(3) before anything else runs.
  RUSTFLAGS="" as_owner cargo rustc --target "$target" --bin sandbox --features fuzzing -- "${coverage[@]}" -C opt-level=1 || return
  install -m755 "${CARGO_TARGET_DIR:-target}/$target/debug/sandbox" "$stage/fuzz"
}

fuzz() { # fuzz TARGET
  local status=0 found
  found=$(as_owner mktemp -d "/var/tmp/sandbox-fuzz-XXXXXX")
  as_owner env SANDBOX_FUZZ="$1" "$stage/fuzz" -max_total_time="$fuzz_seconds" -timeout=30 -rss_limit_mb=1024 -print_final_stats=1 \
    -artifact_prefix="tests/fuzz/$1/" "$found" "tests/fuzz/$1" > "$logs/libfuzzer" 2>&1 < /dev/null || status=$?
  rm -rf "$found"
  [ $status = 0 ] || tail -n 40 "$logs/libfuzzer"
  awk -v name="$1" '{ for (i = 1; i < NF; i++) if ($i == "cov:") cov = $(i + 1) } /number_of_executed_units/ { runs = $2 } /peak_rss_mb/ { mb = $2 }
    END { printf "%s: %d executions, %d places covered, %d MB\n", name, runs, cov, mb; exit runs == 0 }' "$logs/libfuzzer" || status=1
  return $status
}

lab_promises() {
  local promises="root systemd user_manager" kernel
  [ ! -e /dev/fuse ] || promises+=" fuse"
  if [ -e /sys/fs/cgroup/cgroup.controllers ]; then promises+=" cgroup2"; else promises+=" cgroup1"; fi
  kernel=$(uname -r)
  if [ "$1" = tree ]; then promises+=" disk pasta"; else promises+=" overlay_root"; fi
  if [ "$1" = tree ] && new_enough 5.19 "${kernel%%-*}"; then promises+=" idmap"; fi
  echo "$promises"
}

lab() { # lab cow|tree FILTER…: each filter in the same lab
  local kind=() script="status=0" area; [ "$1" = cow ] || kind=(--tree)
  export SANDBOX_TEST_LANE=lab-$1 SANDBOX_BIN=$stage/sandbox SANDBOX_TEST_MUST_RUN=1
  SANDBOX_TEST_PROMISES=$(lab_promises "$1")
  export SANDBOX_TEST_PROMISES
  shift
  for area; do script+="; $stage/live --color=never --test-threads=2 $(printf %q "$area") || status=1"; done
  tests/lab/lab.sh run "${kind[@]}" --bind "$stage" -- sh -c "$script; exit \$status"
}

lanes_at_once() { # three, or as many as there is memory for: 2 GiB each. A boot is mostly one thread
  awk '/^MemAvailable:/ { n = int($2 / (2 * 1024 * 1024)); if (n > 3) n = 3; if (n < 1) n = 1; print n }' /proc/meminfo
}

vms() { # up to an hour a lane under emulation, three at a time, all seven some 100 minutes on two CPUs
  local lane status seconds at_once package=
  at_once=$(lanes_at_once)
  export SANDBOX_TEST_VM_TIMEOUT=${SANDBOX_TEST_VM_TIMEOUT:-5400}   # vm.sh's own is for one test, or a script
  [ -n "$filter" ] || package=$(packaging/build-deb.sh --binary "$stage/sandbox" "$stage") || { step package false; return; }
  export SANDBOX_BIN=$stage/sandbox SANDBOX_LIVE=$stage/live
  for lane in $lanes; do
    while [ "$(jobs -rp | grep -vcx "${trees:-0}")" -ge "$at_once" ]; do wait -n || true; done
    echo "vm-$lane: started"
    ( start=$SECONDS; status=0; filters=(${filter:+"$filter"})
      # shellcheck disable=SC2206  # a list of words
      case "$lane" in
        *-selinux) [ -n "$filter" ] || filters=($selinux_areas); package= ;;
        *-legacy) [ -n "$filter" ] || filters=($legacy_areas); package= ;;
      esac
      SANDBOX_TEST_SLOW=12 setpriv --pdeathsig TERM tests/vm/vm.sh run "$lane" -- "${filters[@]}" > "$logs/vm-$lane" 2>&1 < /dev/null || status=$?
      [ -z "$package" ] || setpriv --pdeathsig TERM tests/vm/vm.sh package "$lane" "$package" >> "$logs/vm-$lane" 2>&1 < /dev/null || status=$?
      echo "$status $((SECONDS - start))" > "$logs/vm-$lane.end"
      echo "vm-$lane: status $status after $((SECONDS - start)) s" ) &
  done
  wait
  for lane in $lanes; do
    echo "=== vm-$lane"; cat "$logs/vm-$lane"
    read -r status seconds < "$logs/vm-$lane.end" || status=125 seconds=0
    count "$logs/vm-$lane" "$status" "$seconds" "vm-$lane"
  done
}

build_trees() { # in the background, while cargo works; who needs one waits for its lock, and says what went wrong
  local lane
  { ! wants lab || tests/tree.sh image bookworm lab
    ! wants vm || for lane in $lanes; do tests/vm/vm.sh tree "${lane%%-*}"; done; } > "$logs/trees" 2>&1 < /dev/null &
  trees=$!
}

summary() {
  printf '\n%-16s %7s %7s %8s %8s\n' bed passed failed ignored seconds
  printf '%s\n' "${rows[@]}"
  echo
  echo "$total_passed passed, $total_failed failed, $total_ignored skipped"
  [ "$total_failed" = 0 ] && [ "$total_passed" -gt 0 ]
}

parse "$@"
[ "$(id -u)" = 0 ] || die "needs root: sudo $0"
install_missing
find_cargo
install_musl
target=$(host_target)   # of the tests
stage=$(mktemp -d /var/tmp/sandbox-test-XXXXXX) logs=$(mktemp -d)
chmod 755 "$stage"
# shellcheck disable=SC2046  # pids
trap 'kill $(jobs -p) 2> /dev/null || true; rm -rf "$stage" "$logs"' EXIT
# Static, so that one binary runs on every bed.
export RUSTFLAGS="${RUSTFLAGS:-$static_flags}" CARGO_TERM_COLOR=never
# A fresh clone has no target directory; the dependencies need not be built again for each.
[ -z "${CI:-}" ] || export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$SANDBOX_TEST_CACHE/target}"

build_trees
if wants check; then
  step format as_owner cargo fmt --check
  step scripts check_scripts
  step clippy as_owner cargo clippy --target "$target" --all-targets -- -D warnings
fi
! wants unit || { step unit unit_tests; step images image_tests; }
if wants fuzz; then
  step build-fuzz build_fuzz
  for directory in tests/fuzz/*"$filter"*/; do [ ! -x "$stage/fuzz" ] || step "fuzz-$(basename "$directory")" fuzz "$(basename "$directory")"; done
fi
if wants lab || wants vm; then
  step build build
  if [ -x "$stage/live" ] && [ -x "$stage/sandbox" ]; then
    if wants lab; then
      [ -n "$filter" ] || step lab-selftest tests/lab/selftest.sh
      step lab-tree lab tree "$filter"
      # shellcheck disable=SC2086  # a list of words
      [ -n "$filter" ] || step lab-cow lab cow $cow_areas
      [ -n "$filter" ] || SANDBOX_BIN=$stage/sandbox step lab-docker tests/lab/docker.sh
      [ -n "$filter" ] || SANDBOX_BIN=$stage/sandbox step lab-probe tests/lab/probe.sh
      [ -n "$filter" ] || SANDBOX_BIN=$stage/sandbox step programs tests/lab/programs.sh --if-there
      [ -n "$filter" ] || step quickstart examples/quickstart.sh
      # Every 17th system call of each; all of them take an hour.
      [ -n "$filter" ] || SANDBOX_BIN=$stage/sandbox SANDBOX_INJECT=$stage/inject step crash tests/crash.sh 17
      [ -n "$filter" ] || SANDBOX_BIN=$stage/sandbox step around tests/around.sh 5
      [ -n "$filter" ] || step package tests/package.sh "$stage/sandbox" "$stage"
    fi
    ! wants vm || vms
  fi
fi
summary
