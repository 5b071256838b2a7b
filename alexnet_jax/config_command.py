"""The parts of all commands with a configuration: its options, the setup of JAX, and their end."""

import dataclasses
import logging
import os
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import jax
from absl import logging as absl_logging

from alexnet_jax.command_line import Parser
from alexnet_jax.parallel import mesh, processes
from alexnet_jax.runtime import memory, storage
from alexnet_jax.runtime.errors import UserError, safe_output, user_error
from alexnet_jax.training import config as config_lib
from alexnet_jax.training.config import Config


def add_options(parser: Parser, default: str = '') -> None:
    """Add --config, which is required if there is no default, and --data_dir."""
    parser.add_argument(
        '--config',
        metavar='FILE',
        default=default,
        help='the configuration, a Python file; --config.section.field=value overrides a field'
        + (f' (default: {default})' if default else ''),
    )
    parser.add_argument(
        '--data_dir',
        metavar='DIR',
        default='',
        help='prepared data sets (default: data.dir, TFDS_DATA_DIR or ~/tensorflow_datasets)',
    )


def parse(parser: Parser, argv: Sequence[str] | None) -> tuple[Any, Config]:
    """Return the parsed options and the configuration, after setting up JAX as it says.

    Raises UserError for a mistake in the configuration.
    """
    arguments, rest = parser.parse_known_args(argv)
    overrides, unknown = _split(rest)
    parser.refuse(unknown)
    if not arguments.config:
        parser.error('--config is missing; for example --config=configs/digits.py')
    config = config_lib.load(pathlib.Path(arguments.config), overrides)
    directory = storage.data_directory(arguments.data_dir, config.data.dir)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, dir=directory))
    _set_up(config)
    return arguments, config


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the overrides, as `--config.field=value`, and the other arguments.

    The value may be an argument of its own. Raises UserError for an override without a value.
    """
    overrides, unknown = [], []
    rest = iter(arguments)
    for argument in rest:
        if not argument.startswith('--config.'):
            unknown.append(argument)
        elif '=' in argument:
            overrides.append(argument)
        else:
            value = next(rest, '--')
            if value.startswith('--'):
                raise UserError(f'{argument} has no value; write {argument}=VALUE')
            overrides.append(f'{argument}={value}')
    return overrides, unknown


def _set_up(config: Config) -> None:
    """Set up JAX's devices, memory, dtypes and compilation cache as the configuration says."""
    # Orbax logs every save, and asyncio and it log each error, which Orbax raises as well.
    absl_logging.set_verbosity(absl_logging.FATAL)
    logging.getLogger('asyncio').setLevel(logging.CRITICAL)
    mesh.select_platform(config.parallel.cpu_devices)
    memory.keep()
    if cache := config.training.compilation_cache_dir:
        directory = storage.resolve(cache, 'config.training.compilation_cache_dir')
        jax.config.update('jax_compilation_cache_dir', os.fspath(directory))
        jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.2)  # its default is 1
    if config.model.dtype == 'float64':
        jax.config.update('jax_enable_x64', True)


def run(command: Callable[[Sequence[str] | None], int], argv: Sequence[str] | None) -> NoReturn:
    """Run a command and end the process with its exit code.

    A UserError prints one line and ends all processes of the run with exit code 2.
    """
    console = logging.getLogger('alexnet_jax')
    console.setLevel(logging.INFO)
    console.propagate = False
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter('%(asctime)s %(message)s', '%H:%M:%S'))
    console.addHandler(handler)
    try:
        with safe_output():
            code = command(argv)
        sys.exit(code)
    except KeyboardInterrupt:
        processes.leave(130)
    except Exception as error:
        processes.end_all(user_error(error) or error)
    finally:  # where the caller lives on, its standard error may not
        console.removeHandler(handler)
        console.propagate = True
