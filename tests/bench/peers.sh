# shellcheck shell=bash
# Sourced in the lab by what compares with others: the same work for each of them, and who is left out, and why.
results=${SANDBOX_BENCH_RESULTS:-/var/tmp}
bench=/srv/bench                                       # what is measured inside: on the lab's disk, so in every sandbox's overlay
bundle=/var/tmp/bundle
# shellcheck disable=SC2034  # for who sources this
limits=(-p CPUWeight=58 -p MemoryMax=500M)             # ours and systemd-run's; the others' words for them are below
# shellcheck disable=SC2034  # for who sources this
container_limits=(--cpu-shares 600 --memory 500m --network none)

left_out() { # left_out FAMILY NAME REASON
  local reason=${3:-it fails without a word}
  echo "$1: $2 is left out: $reason"
  printf '%s\t%s\t%s\n' "$1" "$2" "${reason//$'\t'/ }" >> "$results/left-out.tsv"
}

add() { # add FAMILY NAME COMMAND: to `commands`, for hyperfine, if it works here
  local said
  if ! command -v "${3%% *}" > /dev/null; then left_out "$1" "$2" "not installed here"; return; fi
  if said=$(bash -c "$3" 2>&1 < /dev/null); then commands+=(-n "$2" "$3"); else left_out "$1" "$2" "${said##*$'\n'}"; fi
}

in_any_order() { # sets `turn` to `commands` in another order: a start has to share the CPUs with the end of those before it, whosever they are
  local first
  turn=()
  for first in $(seq 0 3 $((${#commands[@]} - 3)) | shuf); do turn+=("${commands[@]:first:3}"); done
}

let_crun_start() { # crun refuses a hybrid cgroup hierarchy that has controllers in its v2 part; nobody in this lab uses those
  local list=/sys/fs/cgroup/unified/cgroup.controllers
  if ! grep -qs . $list; then return; fi
  : > /var/tmp/no-controllers
  mount --bind /var/tmp/no-controllers $list
}

make_root() { # the root that the others start: busybox, and what is measured inside
  local root=$bundle/rootfs program
  mkdir -p "$root"/{bin,dev,etc,proc,sys,usr,tmp,srv}
  cp /bin/busybox "$root/bin/busybox"
  for program in true sleep sh; do ln -sf busybox "$root/bin/$program"; done
  echo 'root:x:0:0::/:/bin/sh' > "$root/etc/passwd"
  [ ! -d "$bench" ] || cp -a "$bench" "$root/srv/"
}

make_bundle() { # make_bundle DIR ROOT FILTER|"" WORD…: for crun and runc: what `crun spec` gives, without a terminal, the same limits
  local dir=$1 root=$2 filter=$3 words
  words=$(printf '"%s", ' "${@:4}")
  mkdir -p "$dir"
  (cd "$dir" && rm -f config.json && crun spec)
  sed -i -e 's/"terminal": true/"terminal": false/' -e "s|^\t*\"sh\"|${words%, }|" -e "s|\"path\": \"rootfs\"|\"path\": \"$root\"|" \
    -e 's/"readonly": true/"readonly": false/' \
    -e 's/"resources": {/"resources": { "cpu": {"shares": 600}, "memory": {"limit": 524288000},/' "$dir/config.json"
  [ -z "$filter" ] || sed -i "/^\t\"linux\": {/r $filter" "$dir/config.json"
}
