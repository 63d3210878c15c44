#!/bin/bash
# cgroups.sh — a lab's own cgroups: one directory in every hierarchy that this machine has, v1, hybrid or v2. Sourced by lab.sh.

own_cgroups() { # prints "CONTROLLERS DIRECTORY" for each hierarchy that we are in
  local lines line ctrl path mount
  mapfile -t lines < /proc/self/cgroup   # whole first: the file changes under bash's reads while a process moves
  for line in "${lines[@]}"; do
    IFS=: read -r _ ctrl path <<< "$line"
    case "$ctrl" in
      "") ctrl=unified mount=/sys/fs/cgroup/unified; [ -d "$mount" ] || mount=/sys/fs/cgroup ;;
      name=systemd) mount=/sys/fs/cgroup/systemd ;;
      *) mount=/sys/fs/cgroup/$ctrl ;;
    esac
    [ -e "$mount${path%/}/cgroup.procs" ] || continue   # a plain directory is not a hierarchy
    echo "$ctrl $mount${path%/}"
  done
}

make_cgroups() { # make_cgroups NAME: creates them and notes them in the state directory
  local ctrl parent dir file
  while read -r ctrl parent; do
    dir=$parent/lab-$1
    [ "$ctrl" != unified ] || delegate_v2 "$parent"
    mkdir "$dir"
    echo "$dir" >> "/run/lab-$1/cgroups"
    [ "$ctrl" = cpuset ] || continue
    for file in cpuset.cpus cpuset.mems; do cat "$parent/$file" > "$dir/$file"; done
  done < <(own_cgroups)
}

# On plain cgroup2 a group with processes of its own cannot hand controllers on (the true root can). Where systemd runs this machine
# the keeper is in a delegated scope, so it may step aside into a group beside the lab's.
delegate_v2() {
  local controller
  [ -n "$(cat "$1/cgroup.controllers")" ] || return 0   # its size says nothing
  if [ -e "$1/cgroup.type" ]; then
    mkdir -p "$1/keeper"
    echo $$ > "$1/keeper/cgroup.procs"
  fi
  tr ' ' '\n' < "$1/cgroup.controllers" | while read -r controller; do
    echo "+$controller" > "$1/cgroup.subtree_control" 2>/dev/null || echo "lab: no controller $controller here" >&2
  done
}

remove_cgroups() { # remove_cgroups NAME: whoever is still in them was started by this lab
  local dir pid try
  [ -e "/run/lab-$1/cgroups" ] || return 0
  while read -r dir; do
    for try in $(seq 100); do
      [ -d "$dir" ] || break
      find "$dir" -name cgroup.procs -exec cat {} + 2>/dev/null | while read -r pid; do kill -KILL "$pid" 2>/dev/null || true; done
      find "$dir" -depth -type d -exec rmdir {} + 2>/dev/null || true
      [ ! -d "$dir" ] || sleep 0.05
    done
    [ ! -d "$dir" ] || echo "lab: cannot remove $dir after $try tries" >&2
  done < "/run/lab-$1/cgroups"
}

# The process in front of the lab's PID 1 made the cgroup namespace, so it sits in the group that is its root. On v2 systemd cannot
# hand controllers on from there until it has left; init.sh waits for that.
release() { # release NAME PID
  local dir
  while kill -0 "$2" 2>/dev/null && [ ! -e "/run/lab-$1/pid" ]; do sleep 0.01; done
  while read -r dir; do
    [ -n "$(cat "$dir/cgroup.controllers" 2>/dev/null)" ] || continue
    mkdir -p "$dir/exec"
    echo "$2" > "$dir/exec/cgroup.procs"
  done < "/run/lab-$1/cgroups"
  touch "/run/lab-$1/go"
}
