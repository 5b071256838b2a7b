"""Train or evaluate AlexNet.

python -m alexnet_jax.main --config=configs/digits.py [--workdir=DIR] [--data_dir=DIR]
    [--mode=train|evaluate] [--dry_run] [--config.section.field=value ...]
    [--distributed=off|auto|slurm|k8s|tpu|mpi4py]
    [--coordinator_address=HOST:PORT --num_processes=N --process_id=I]

Exit codes: 0 done, 1 a bug (traceback), 2 yours to mend (one line), 75 ended by the watchdog,
134 another process was lost, 143 saved and ended on SIGTERM.
"""

import logging
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
from absl import app, flags
from absl import logging as absl_logging
from etils import epath
from ml_collections import config_flags

from alexnet_jax import config as config_lib
from alexnet_jax.config import UserError
from alexnet_jax.parallel import mesh, processes
from alexnet_jax.training import describe, experiment, loop

_CONFIG = config_flags.DEFINE_config_file('config', help_string='The configuration, a Python file.')
_WORKDIR = flags.DEFINE_string('workdir', '', 'Default: runs/ and the name of the config file.')
_DATA_DIR = flags.DEFINE_string(
    'data_dir', '', 'Prepared data sets; else data.dir, TFDS_DATA_DIR, ~/tensorflow_datasets.'
)
_MODE = flags.DEFINE_enum('mode', 'train', ['train', 'evaluate'], 'What to do.')
_DRY_RUN = flags.DEFINE_bool('dry_run', False, 'Print what would run, compile one step, end.')
_DISTRIBUTED = flags.DEFINE_enum(
    'distributed', 'off', processes.DETECTIONS, 'What started several processes; auto: JAX looks.'
)
_COORDINATOR = flags.DEFINE_string(
    'coordinator_address', '', 'HOST:PORT of process 0, where no launcher is found.'
)
_NUM_PROCESSES = flags.DEFINE_integer('num_processes', None, 'How many processes there are.')
_PROCESS_ID = flags.DEFINE_integer('process_id', None, 'Which of them this is, from 0.')


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Parse the command line; a mistake raises UserError instead of a traceback or two lines."""
    for argument in argv:
        if argument.startswith(('--config.', '-config.')):
            config_lib.check_field_name(argument.partition('config.')[2].partition('=')[0])
    try:
        rest = flags.FLAGS(argv)
    except Exception as error:  # of absl, of ml_collections, or raised by the config file
        missing = isinstance(error, ModuleNotFoundError) and error.name == 'configs'
        hint = '; start it in the checkout' if missing else ''
        raise UserError(f'command line: {_one_line(error)}{hint}') from error
    if len(rest) > 1:
        raise UserError(f'command line: {rest[1]!r} is not a flag; flags begin with --')
    if _CONFIG.value is None:
        raise UserError('--config is missing; for example --config=configs/digits.py')
    file = _config_file()
    if not file.is_file():
        raise UserError(f'--config={file} is not a file; for example --config=configs/digits.py')
    return rest


def run(argv: Sequence[str]) -> int:
    """Do what the flags say; return the exit code."""
    del argv
    absl_logging.set_verbosity(absl_logging.ERROR)  # Orbax comments every save
    config = _CONFIG.value
    config_lib.validate(config)
    with config.unlocked():
        config.data.dir = config_lib.data_directory(_DATA_DIR.value, config.data.dir)
    config.lock()

    mesh.select_platform(config.parallel.cpu_devices)
    if config.model.dtype == 'float64':
        jax.config.update('jax_enable_x64', True)
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
    workdir = epath.Path(_WORKDIR.value or pathlib.Path('runs') / _config_file().stem).expanduser()
    if _DRY_RUN.value:
        with_data = not (config.data.train_examples and config.data.image_shape)
        description = describe.describe(experiment.build(config, with_data=with_data))
        if jax.process_index() == 0:
            print(description)
        return 0
    if _MODE.value == 'evaluate':
        loop.evaluate_checkpoint(config, workdir)
        return 0
    return loop.train(config, workdir)


def _config_file() -> pathlib.Path:
    flag: Any = flags.FLAGS['config']
    return pathlib.Path(flag.config_filename)


def _one_line(error: Exception) -> str:
    kind = '' if isinstance(error, flags.Error) else f'{type(error).__name__}: '
    return kind + ' '.join(str(error).split())


def main() -> None:
    """Run as a command: one line and exit code 2 for a UserError."""
    console = logging.getLogger('alexnet_jax')
    console.setLevel(logging.INFO)
    console.propagate = False
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter('%(asctime)s %(message)s', '%H:%M:%S'))
    console.addHandler(handler)
    try:
        app.run(run, flags_parser=parse_flags)
    except KeyboardInterrupt:
        processes.leave(130)
    except Exception as error:
        processes.end_all(error)


if __name__ == '__main__':
    main()
