#!/usr/bin/env bash
# The first process of a pod: launch/k8s/pod.sh PYTHON ARGUMENTS... runs launch/task.sh.
#
# Kubernetes sends SIGTERM to this process only, so it is passed on. Where another process was lost
# before the first step (3), a moment is left for what happened to that one to count: if its pod was
# taken away, all start again, and if it made a mistake, its exit code stops the run.
set -uo pipefail
set -m # a process group of its own, to which SIGTERM is passed on
"$(dirname "${BASH_SOURCE[0]}")/../task.sh" "$@" &
task=$!
terminated=
trap 'terminated=yes; kill -TERM -- "-$task" 2>/dev/null' TERM

wait "$task"
code=$?
while kill -0 "$task" 2>/dev/null; do # SIGTERM ended only the waiting
  wait "$task"
  code=$?
done
if ((code == 3)); then
  sleep "${OTHERS_S:-30}" &
  wait $!
  kill $! 2>/dev/null
  if [[ -n $terminated ]]; then code=143; fi
fi
exit "$code"
