"""Train or evaluate AlexNet, or check in a few steps that a configuration learns.

    python -m alexnet_jax.main --config=configs/digits.py [--workdir=DIR] [--data_dir=DIR]
        [--mode=train|evaluate|check] [--check_steps=N] [--dry_run]
        [--config.section.field=value ...]
        [--distributed=off|auto|slurm|k8s|tpu|mpi4py]
        [--coordinator_address=HOST:PORT --num_processes=N --process_id=I]

Exit codes: 0 success, 1 a bug (traceback), 2 an error that you can mend (one line), 75 ended by the
watchdog, 134 another process was lost, 141 the reader of standard output has left, 143 ended on
SIGTERM and 130 on Ctrl-C, both after a save if the training had begun.
"""

from alexnet_jax.runtime import beginning

if __name__ == '__main__':
    beginning.prepare_process()

import argparse
import pathlib
from collections.abc import Sequence
from typing import NoReturn

import jax
from etils import epath

from alexnet_jax import config_command
from alexnet_jax.command_line import Parser
from alexnet_jax.parallel import processes
from alexnet_jax.runtime import storage
from alexnet_jax.training import check, describe, ensemble, evaluate_checkpoint, guard, loop
from alexnet_jax.training.config import Config
from alexnet_jax.training.experiment import build


def _parser() -> Parser:
    parser = Parser(prog='python -m alexnet_jax.main', description=__doc__ or '')
    config_command.add_options(parser)
    add = parser.add_argument
    add(
        '--workdir',
        metavar='DIR',
        default='',
        help='directory for the files of the run (default: runs/NAME for --config=.../NAME.py)',
    )
    add('--mode', choices=('train', 'evaluate', 'check'), default='train', help='what to do')
    add(
        '--check_steps',
        type=int,
        default=100,
        metavar='N',
        help='maximum number of steps of --mode=check (default: 100)',
    )
    add('--dry_run', action='store_true', help='describe the run and compile a step; train nothing')
    add(
        '--distributed',
        choices=processes.DETECTIONS,
        default='off',
        help='the launcher that started several processes; auto: JAX detects it',
    )
    add(
        '--coordinator_address',
        metavar='HOST:PORT',
        default='',
        help='address of process 0, for processes without a launcher',
    )
    add('--num_processes', type=int, metavar='N', help='the number of processes')
    add('--process_id', type=int, metavar='I', help='the number of this process, from 0')
    # For launch/task.sh: the file is made after the first training step.
    add('--first_step_file', default='', help=argparse.SUPPRESS)
    return parser


def run(argv: Sequence[str] | None) -> int:
    """Run what the command line asks for, and return the exit code."""
    parser = _parser()
    arguments, config = config_command.parse(parser, argv)
    if arguments.check_steps < 1:
        parser.error(f'--check_steps={arguments.check_steps} must be at least 1')
    default_workdir = pathlib.Path('runs') / pathlib.Path(arguments.config).stem
    workdir = storage.resolve(arguments.workdir or default_workdir, '--workdir')
    processes.connect(
        config.parallel,
        distributed=arguments.distributed,
        coordinator_address=arguments.coordinator_address,
        num_processes=arguments.num_processes,
        process_id=arguments.process_id,
        wait_on_sigterm=arguments.mode == 'train' and not arguments.dry_run,
    )
    training = config.training
    with guard.Watchdog(training.watchdog_s, training.watchdog_slow_s, arguments.first_step_file):
        guard.expect('the start of the devices', slow=True)
        processes.start_devices()
        return _run(arguments, config, workdir)


def _run(arguments: argparse.Namespace, config: Config, workdir: epath.Path) -> int:
    """Do what the options ask for, once all processes have met; return the exit code."""
    if arguments.mode == 'evaluate' and config.evaluation.ensemble and not arguments.dry_run:
        ensemble.evaluate_ensemble(config)
        return 0
    sizes = (config.data.train_examples, config.data.image_shape, config.model.num_classes)
    experiment = build(config, with_data=not arguments.dry_run or not all(sizes))
    if arguments.dry_run:
        described = describe.describe(experiment)
        if jax.process_index() == 0:
            print(described)
    elif arguments.mode == 'evaluate':
        evaluate_checkpoint.evaluate_checkpoint(experiment, workdir)
    elif arguments.mode == 'check':
        check.check(experiment, arguments.check_steps)
    else:
        return loop.train(experiment, workdir)
    return 0


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run as a command: one line and exit code 2 for a UserError."""
    beginning.end_with(processes.end_now)
    config_command.run(run, argv)


if __name__ == '__main__':
    main()
