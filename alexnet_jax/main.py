"""Train or evaluate AlexNet, or check in a few steps that a configuration learns.

python -m alexnet_jax.main --config=configs/digits.py [--workdir=DIR] [--data_dir=DIR]
    [--mode=train|evaluate|check] [--check_steps=N] [--dry_run] [--config.section.field=value ...]
    [--distributed=off|auto|slurm|k8s|tpu|mpi4py]
    [--coordinator_address=HOST:PORT --num_processes=N --process_id=I]

Exit codes: 0 done, 1 a bug (traceback), 2 yours to mend (one line), 75 ended by the watchdog,
134 another process was lost, 143 saved and ended on SIGTERM, 130 on Ctrl-C.
"""

import pathlib
from collections.abc import Sequence

import jax
from absl import flags
from etils import epath

from alexnet_jax import command_line
from alexnet_jax.parallel import processes
from alexnet_jax.training import check, describe, ensemble, evaluate_checkpoint, experiment, loop

_WORKDIR = flags.DEFINE_string('workdir', '', 'Default: runs/ and the name of the config file.')
_MODE = flags.DEFINE_enum('mode', 'train', ['train', 'evaluate', 'check'], 'What to do.')
_CHECK_STEPS = flags.DEFINE_integer(
    'check_steps', 100, 'Steps of --mode=check, at most.', lower_bound=1
)
_DRY_RUN = flags.DEFINE_bool('dry_run', False, 'Print what would run, compile one step, end.')
_DISTRIBUTED = flags.DEFINE_enum(
    'distributed', 'off', processes.DETECTIONS, 'What started several processes; auto: JAX looks.'
)
_COORDINATOR = flags.DEFINE_string(
    'coordinator_address', '', 'HOST:PORT of process 0, where no launcher is found.'
)
_NUM_PROCESSES = flags.DEFINE_integer('num_processes', None, 'How many processes there are.')
_PROCESS_ID = flags.DEFINE_integer('process_id', None, 'Which of them this is, from 0.')


def run(argv: Sequence[str]) -> int:
    """Do what the flags say; return the exit code."""
    del argv
    config = command_line.load_config()
    processes.connect(
        distributed=_DISTRIBUTED.value,
        coordinator_address=_COORDINATOR.value,
        num_processes=_NUM_PROCESSES.value,
        process_id=_PROCESS_ID.value,
        initialization_timeout_s=config.parallel.initialization_timeout_s,
        heartbeat_timeout_s=config.parallel.heartbeat_timeout_s,
        shutdown_timeout_s=config.parallel.shutdown_timeout_s,
        wait_on_sigterm=_MODE.value == 'train' and not _DRY_RUN.value,
    )
    default_workdir = pathlib.Path('runs') / command_line.config_file().stem
    workdir = epath.Path(_WORKDIR.value or default_workdir).expanduser()
    if _DRY_RUN.value:
        with_data = not (config.data.train_examples and config.data.image_shape)
        description = describe.describe(experiment.build(config, with_data=with_data))
        if jax.process_index() == 0:
            print(description)
        return 0
    if _MODE.value == 'evaluate' and config.evaluation.ensemble:
        ensemble.evaluate_ensemble(config)
        return 0
    if _MODE.value == 'evaluate':
        evaluate_checkpoint.evaluate_checkpoint(config, workdir)
        return 0
    if _MODE.value == 'check':
        check.check(config, _CHECK_STEPS.value)
        return 0
    return loop.train(config, workdir)


def main() -> None:
    """Run as a command: one line and exit code 2 for a UserError."""
    command_line.run(run, __doc__ or '')


if __name__ == '__main__':
    main()
