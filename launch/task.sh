#!/usr/bin/env bash
# Run one process of a run, so that the launcher learns from its exit code whether to start the run
# again:
#
#   launch/task.sh PYTHON --distributed=slurm --config=FILE ...
#
# The exit code is that of `PYTHON -m alexnet_jax.main`, except where the watchdog ended the process
# (75), another process was lost (134) or this one was killed (137) before it had done a training
# step: then it is 3, because another start would most likely end in the same way. A SIGTERM that
# reaches this script, too, is a reason of its own and changes nothing: the code stays.
set -uo pipefail
python=$1
first_step_file=$(mktemp --dry-run) || exit
terminated=
trap 'terminated=yes' TERM # the shell must live on to see how the process ends

"$python" -m alexnet_jax.main "${@:2}" "--first_step_file=$first_step_file"
code=$?
case $code in
  75 | 134 | 137)
    if [[ ! -e $first_step_file && -z $terminated ]]; then
      echo "error: exit code $code before the first training step of this start; the output above says why, and a start by hand goes on from the last checkpoint" >&2
      code=3
    fi
    ;;
esac
rm -f "$first_step_file"
exit "$code"
