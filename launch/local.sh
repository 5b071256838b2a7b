#!/usr/bin/env bash
# Start several processes on this machine as one run:
#
#   launch/local.sh 2 --config=configs/digits.py --config.parallel.cpu_devices=1
#
# The first argument is the number of processes; all others go to `python -m alexnet_jax.main`.
# Process 0 writes to the terminal; the lines of the others begin with their number. With GPUs, each
# process takes one. SIGTERM and Ctrl-C are passed on to all processes, and a second one kills them.
# The script ends with the exit code of the process that failed first; the others then have
# OTHERS_S seconds (30) to end by themselves.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [[ ! ${1:-} =~ ^[1-9][0-9]*$ ]]; then
  echo "error: launch/local.sh needs the number of processes first, for example: launch/local.sh 2 --config=configs/digits.py" >&2
  exit 2
fi
count=$1
shift
python=${PYTHON:-python}
port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
export JAX_COORDINATOR_BIND_ADDRESS=127.0.0.1:$port

set -m # each process has a group of its own: the terminal's Ctrl-C reaches this script only
pids=()
for ((id = 0; id < count; id++)); do
  command=("$python" -m alexnet_jax.main "--coordinator_address=127.0.0.1:$port"
    "--num_processes=$count" "--process_id=$id" "$@")
  if ((id == 0)); then
    JAX_LOCAL_DEVICE_IDS=$id "${command[@]}" </dev/null &
  else
    JAX_LOCAL_DEVICE_IDS=$id "${command[@]}" </dev/null > >(sed -u "s/^/[$id] /" >&2) 2>&1 &
  fi
  pids[id]=$!
done

signals=0
# shellcheck disable=SC2317 # called by the traps
pass_on() {
  local signal=$1 pid
  signals=$((signals + 1))
  if ((signals > 1)); then signal=KILL; fi
  for pid in "${pids[@]}"; do kill -s "$signal" "$pid" 2>/dev/null || true; done
}
trap 'pass_on TERM' TERM
trap 'pass_on INT' INT

code=0
deadline=
while ((${#pids[@]})); do
  for id in "${!pids[@]}"; do
    if kill -0 "${pids[id]}" 2>/dev/null; then continue; fi
    ended=0
    wait "${pids[id]}" || ended=$?
    unset "pids[id]"
    # 134 only says that another process was lost, so any other code is the cause.
    if ((code == 0 || (code == 134 && ended != 0))); then code=$ended; fi
    if ((ended != 0)); then deadline=${deadline:-$((SECONDS + ${OTHERS_S:-30}))}; fi
  done
  if [[ -n $deadline ]] && ((SECONDS >= deadline)); then
    echo "launch/local.sh: killing the processes ${!pids[*]}, which did not end" >&2
    for pid in "${pids[@]}"; do kill -s KILL "$pid" 2>/dev/null || true; done
    deadline=
  fi
  sleep 0.1
done
exit "$code"
