#!/bin/bash
# Keep a run going on a spot TPU VM until it is done: create the VM again when it is taken away, start
# the run again when it ends with 75, 134, 137 or 143, and stop when it ends with 1, 2 or 3.
#
#   NAME=alexnet ZONE=us-central1-a TYPE=v5litepod-16 launch/tpu_vm/babysit.sh \
#       --config=configs/alexnet.py --workdir=/mnt/runs/one --data_dir=/mnt/data
#
# Leave it running in tmux on a machine that stays on. The variables of create.sh may be set as well.
set -uo pipefail

: "${NAME:?set it to the name of the TPU VM}" "${ZONE:?set it to the zone of the TPUs}"
: "${TYPE:?set it to the type of the TPUs, for example v5litepod-16}"
MAX_STARTS=${MAX_STARTS:-50}  # an attempt to create the VM counts as a start
POLL_S=${POLL_S:-60}
MAX_SILENCE=${MAX_SILENCE:-10}  # after so many polls without an answer, the VM is created again
here=$(dirname "${BASH_SOURCE[0]}")
export NAME ZONE TYPE

say() { echo "$(date '+%F %T') $*" >&2; }

# Print the state of the VM: Google's word for it, GONE, or UNKNOWN when there is no answer.
vm() {
  local answer
  if answer=$(gcloud compute tpus tpu-vm describe "$NAME" --zone="$ZONE" --format='value(state)' 2>&1); then
    tail -n 1 <<<"$answer"
  elif [[ $answer == *NOT_FOUND* ]]; then
    echo GONE
  else
    echo UNKNOWN
  fi
}

# Print the state of the run: running, none, silent, or the exit code that counts most.
run() {
  local states
  states=$("$here/run.sh" state 2>/dev/null | sed -n 's/^state //p')
  # 3, no step was done, is only the end when no host says otherwise: one may still run or have been
  # taken away (143).
  for state in 1 2 143 75 134 137 running 3 none; do
    if grep -qx "$state" <<<"$states"; then echo "$state"; return; fi
  done
  sort -rn <<<"${states:-silent}" | head -n 1
}

starts=0 silence=0
again() {
  ((starts < MAX_STARTS)) || { say "giving up after $MAX_STARTS starts"; exit 75; }
  starts=$((starts + 1))
  say "$1: start $starts of at most $MAX_STARTS"
}

while true; do
  state=$(vm)
  case $state in
    READY) state=$(run) ;;
    GONE | PREEMPTED | TERMINATED | STOPPED) state=lost ;;
    UNKNOWN) say "Google does not answer" ;;
    *) ;;  # it is being created or repaired
  esac
  if [[ $state == silent ]]; then silence=$((silence + 1)); else silence=0; fi
  if ((silence > MAX_SILENCE)); then state=lost silence=0; fi
  case $state in
    0) say "done"; exit 0 ;;
    75 | 134 | 137 | 143)
      again "the run ended with $state"
      "$here/run.sh" stop
      "$here/run.sh" start "$@"
      ;;
    none)
      again "nothing runs"
      "$here/run.sh" start "$@"
      ;;
    lost)
      again "the TPU VM is lost"
      gcloud compute tpus tpu-vm delete "$NAME" --zone="$ZONE" --quiet
      if "$here/create.sh"; then "$here/run.sh" start "$@"; fi
      ;;
    [A-Z]* | running | silent) ;;
    *) say "the run ended with $state and is not started again"; exit "$state" ;;
  esac
  sleep "$POLL_S"
done
