#!/usr/bin/env bash
# Train the runs of a list one after another on this machine, and compare them:
#
#   launch/sweep.sh LIST --config=configs/digits.py --workdir=runs/sweep --seeds=0,1,2
#
# Each line of LIST is a name and what its runs override, quoted as in a shell (nothing is expanded).
# Empty lines and lines that begin with # are skipped:
#
#   baseline
#   crops --config.augment.resized_crop_area=(0.08,1.0)
#
# --workdir, --seeds (default: 0), --data_dir, --config and further overrides hold for all runs; a line
# may override them. Each line is trained once with each seed, in DIR/NAME_seedS. Paths are relative to
# the checkout. launch/slurm/sweep.sbatch trains the same list as a job array.
#
# The same command again goes on: a finished run says `nothing to train`, a stopped one resumes. SIGTERM
# and Ctrl-C are passed on to the run, which saves; the sweep then ends with 143 or 130. A run that ends
# with 75, 134 or 137 is started again, MAX_RESTARTS times at most (10). After any other exit code the
# sweep goes on with the next run. At the end it prints the table of `report compare`, whose baseline is
# the first line, and names the runs that failed; its exit code is that of the first of these.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
python=${PYTHON:-python}
max_restarts=${MAX_RESTARTS:-10}

mapfile -d '' -t words < <("$python" launch/sweep_list.py "$@")
wait $! || exit

set -m # each run has a process group of its own: the terminal's Ctrl-C reaches this script only
task='' signal=''
# shellcheck disable=SC2317 # called by the traps
pass_on() {
  signal=$1
  if [[ -n $task ]]; then kill -s "$signal" -- "-$task" 2>/dev/null; fi
}
trap 'pass_on TERM' TERM
trap 'pass_on INT' INT

# Start a run, wait for its end and set `code`; end the sweep if it was stopped.
start() {
  launch/task.sh "$python" "$@" </dev/null &
  task=$!
  if [[ -n $signal ]]; then pass_on "$signal"; fi # it came before `task` was set
  wait "$task"
  code=$?
  while kill -0 "$task" 2>/dev/null; do # a signal ended only the waiting
    wait "$task"
    code=$?
  done
  task=''
  case $signal in TERM) code=143 ;; INT) code=130 ;; esac
  if ((code == 130 || code == 143)); then
    echo "launch/sweep.sh: stopped; to go on, run the same command again" >&2
    exit "$code"
  fi
}

count=0 first='' baseline='' failed='' failed_code=0 run=()
for word in "${words[@]}"; do if [[ -z $word ]]; then count=$((count + 1)); fi; done
number=0
for word in "${words[@]}"; do
  if [[ -n $word ]]; then run+=("$word"); continue; fi
  workdir=${run[-1]#--workdir=} number=$((number + 1)) restarts=0
  name=${workdir##*/}
  first=${first:-$name}
  echo "launch/sweep.sh: run $number of $count: $name" >&2
  start "${run[@]}"
  while ((code == 75 || code == 134 || code == 137)) && ((restarts < max_restarts)); do
    restarts=$((restarts + 1))
    echo "launch/sweep.sh: exit code $code: restart $restarts of at most $max_restarts" >&2
    start "${run[@]}"
  done
  if ((code != 0)); then
    failed+="${failed:+, }$name (exit code $code)"
    if ((failed_code == 0)); then failed_code=$code; fi
  elif [[ -z $baseline && ${name%_seed*} == "${first%_seed*}" ]]; then
    baseline=$name
  fi
  run=()
done

"$python" -m alexnet_jax.report compare --runs="${workdir%/*}" --baseline="${baseline:-$first}"
code=$?
if [[ -n $failed ]]; then
  echo "error: these runs failed, the output above says why: $failed" >&2
  code=$failed_code
fi
exit "$code"
