#!/bin/bash
# run.sh runs this on each host of a TPU VM: host.sh start ARGUMENTS... | state | stop
#
# `state` prints "state running", "state none" or "state CODE", the exit code of the last run.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

PYTHON=${PYTHON:-.venv/bin/python}
GRACE_S=${GRACE_S:-300}  # from SIGTERM to SIGKILL: a step and a save must fit into it

# The run is a session of its own, whose number is that of its first process.
running() { [[ -f run.pid ]] && kill -0 -- "-$(<run.pid)" 2>/dev/null; }

case ${1:-} in
  start)
    if running; then echo "error: a run is already in progress here; stop it first" >&2; exit 2; fi
    rm -f run.code
    # shellcheck disable=SC2016
    JAX_PLATFORMS=tpu,cpu setsid bash -c 'trap : TERM; "$@"; echo $? >run.code' run \
      launch/task.sh "$PYTHON" --distributed=tpu "${@:2}" </dev/null >>run.log 2>&1 &
    echo $! >run.pid
    ;;
  state)
    if running; then
      echo "state running"
    elif [[ -f run.pid ]]; then
      # If there is no code, the run was killed or the host has rebooted.
      echo "state $(cat run.code 2>/dev/null || echo 137)"
    else
      echo "state none"
    fi
    ;;
  stop)
    if running; then kill -TERM -- "-$(<run.pid)"; fi
    for ((second = 0; second < GRACE_S; second++)); do
      running || break
      sleep 1
    done
    if running; then kill -KILL -- "-$(<run.pid)"; fi
    ;;
  *)
    echo "error: the first argument must be start, state or stop, not '${1:-}'" >&2
    exit 2
    ;;
esac
