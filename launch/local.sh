#!/usr/bin/env bash
# Several processes on this machine as one run:
#
#   launch/local.sh 2 --config=configs/digits.py --config.parallel.cpu_devices=1
#
# The first argument is their number, the others are those of `python -m alexnet_jax.main`. Process 0
# writes to the terminal, the others behind their number. With GPUs each process takes one. SIGTERM
# and Ctrl-C go to all, a second one kills them. Ends with the exit code of the process that failed
# first; the others then have OTHERS_S seconds (30) to end by themselves.
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

set -m # each process in a group of its own: the terminal's Ctrl-C comes to this script only
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
# shellcheck disable=SC2317 # the traps call it
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
    # 134 says only that another process was lost.
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
