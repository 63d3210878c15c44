#!/usr/bin/env bash
# Unpacking one root file system of some 200 MB, plain, gzip and zstd: `sandbox image import` beside tar, umoci, podman and docker.
#
#   tests/bench-images.sh [ROOT.tar]
#
# Ours does all of its work in that time: digests of blob and tar checked, the blob kept, everything synced. Best of RUNS
# (5), one after the other in each round, so that a busy machine hits all alike. BENCH_DIR is where (a tmpfs by default, so
# that a disk's moods are out of it); BENCH_WITH may be `nice -n -20` where other work on the machine cannot be stopped.
# shellcheck disable=SC2317  # functions are called by trap and by bash -c
set -euo pipefail
sandbox=${SANDBOX_BIN:-$(dirname "$0")/../target/release/sandbox}
runs=${RUNS:-5}
with=${BENCH_WITH:-}
work=$(mktemp -d "${BENCH_DIR:-/dev/shm}/sandbox-bench.XXXXXX")
docker_pid=
finish() {
    [ -z "$docker_pid" ] || { kill "$docker_pid"; wait "$docker_pid" || true; }
    rm -rf "$work"
}
trap finish EXIT
sandbox=$(realpath "$sandbox")

root=${1:-/var/cache/sandbox-test/bench-root.tar}
if [ ! -f "$root" ]; then
    mkdir -p "$(dirname "$root")"
    mmdebstrap --quiet --format=tar --variant=minbase --include=python3-minimal,perl,ca-certificates,procps,vim-tiny bookworm "$root.new"
    mv "$root.new" "$root"
fi
cp "$root" "$work/root.tar"
cd "$work"
gzip -6 -k root.tar
zstd -q -3 root.tar

# The same blobs as layouts for umoci and as archives for podman and docker.
for kind in tar tar.gz tar.zst; do
    "$sandbox" image --quiet --store "store-$kind" import --tag bench:1 "root.$kind" > /dev/null
    "$sandbox" image --quiet --store "store-$kind" export bench:1 --format=oci-dir --output "layout-$kind"
    "$sandbox" image --quiet --store "store-$kind" export bench:1 --output "archive-$kind"
    rm -rf "store-$kind"
done

if command -v dockerd > /dev/null; then
    dockerd --storage-driver=overlay2 --iptables=false --ip6tables=false --bridge=none --data-root "$work/docker" --exec-root "$work/docker-run" \
        --pidfile "$work/docker.pid" -H "unix://$work/docker.sock" > /dev/null 2>&1 &
    docker_pid=$!
    for _ in $(seq 100); do docker -H "unix://$work/docker.sock" version > /dev/null 2>&1 && break; sleep 0.1; done
    docker -H "unix://$work/docker.sock" version > /dev/null 2>&1 || { kill "$docker_pid"; docker_pid=; }
fi

# What each does for one kind; `clean` is outside the measured time.
work_tar() { mkdir x && tar -xf "root.$1" -C x; }
work_sandbox() { "$sandbox" image --quiet --store s import --tag bench:1 "root.$1" > /dev/null; }
work_umoci() { umoci unpack --image "layout-$1:1" u > /dev/null 2>&1; }
work_podman() { podman --root "$work/p" --runroot "$work/pr" --storage-driver vfs load -qi "archive-$1" > /dev/null 2>&1; }
work_docker() { docker -H "unix://$work/docker.sock" load -qi "archive-$1" > /dev/null 2>&1; }
clean() {
    rm -rf x s u p pr
    [ -z "$docker_pid" ] || docker -H "unix://$work/docker.sock" rmi -f bench:1 > /dev/null 2>&1 || true
}
export -f work_tar work_sandbox work_umoci work_podman work_docker
export sandbox work

tools="tar sandbox"
for tool in umoci podman; do command -v "$tool" > /dev/null && tools="$tools $tool"; done
[ -z "$docker_pid" ] || tools="$tools docker"

printf '%-8s %-8s %8s %8s   %s\n' kind tool seconds cpu 'times as long as sandbox'
failed=0
for kind in tar tar.gz tar.zst; do
    for tool in $tools; do rm -f "best-$tool"; done
    for _ in $(seq "$runs"); do
        for tool in $tools; do
            clean
            # shellcheck disable=SC2086  # the prefix is words
            $with bash -c "TIMEFORMAT='%R %U %S'; time work_$tool $kind" 2>> "best-$tool" || echo "failed" >> "best-$tool"
        done
    done
    ours=$(sort -n best-sandbox | awk 'NR==1{print $1}')
    for tool in $tools; do
        if grep -q failed "best-$tool"; then
            printf '%-8s %-8s %8s\n' "$kind" "$tool" 'cannot'
            continue
        fi
        sort -n "best-$tool" | awk -v kind="$kind" -v tool="$tool" -v ours="$ours" 'NR==1{printf "%-8s %-8s %8.2f %8.2f   %.2f\n", kind, tool, $1, $2+$3, $1/ours}'
        best=$(sort -n "best-$tool" | awk 'NR==1{print $1}')
        awk -v a="$best" -v b="$ours" 'BEGIN{exit !(a < b)}' && { echo "  slower than $tool"; failed=1; }
    done
done
exit "$failed"
