"""What the commands share: the flags of a configuration, help, errors of one line, exit codes."""

import functools
import logging
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import ml_collections
from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from alexnet_jax import config as config_lib
from alexnet_jax.parallel import mesh, processes
from alexnet_jax.runtime import memory
from alexnet_jax.runtime.errors import UserError

_CONFIG = config_flags.DEFINE_config_file(
    'config',
    help_string='The configuration, a Python file; --config.section.field=value overrides.',
)
_DATA_DIR = flags.DEFINE_string(
    'data_dir', '', 'Prepared data sets; else data.dir, TFDS_DATA_DIR, ~/tensorflow_datasets.'
)


def run(
    command: Callable[[Sequence[str]], int],
    documentation: str,
    *,
    default_config: str = '',
    words: Sequence[str] = (),
) -> None:
    """Parse the flags, do the command, and end the process with its exit code.

    Args:
      command: called with the words of the command line that are no flags, the program's first.
      documentation: what --help prints above the flags.
      default_config: the file for a command line without --config; '': it is an error.
      words: where not empty, the command line must have one of these, as in `benchmark input`.

    A UserError ends in one line and exit code 2, with all processes of the run.
    """
    console = logging.getLogger('alexnet_jax')
    console.setLevel(logging.INFO)
    console.propagate = False
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter('%(asctime)s %(message)s', '%H:%M:%S'))
    console.addHandler(handler)
    parse = functools.partial(_parse, documentation, default_config, words)
    try:
        app.run(command, flags_parser=parse)
    except KeyboardInterrupt:
        processes.leave(130)
    except Exception as error:
        processes.end_all(error)


def load_config() -> ml_collections.ConfigDict:
    """Return the configuration of the flags, validated, with JAX set up as it says, and malloc."""
    absl_logging.set_verbosity(absl_logging.ERROR)  # Orbax comments every save
    config = _CONFIG.value
    config_lib.validate(config)
    with config.unlocked():
        config.data.dir = config_lib.data_directory(_DATA_DIR.value, config.data.dir)
    config.lock()
    mesh.select_platform(config.parallel.cpu_devices)
    memory.keep()
    if config.training.compilation_cache_dir:
        cache = pathlib.Path(config.training.compilation_cache_dir).expanduser()
        jax.config.update('jax_compilation_cache_dir', str(cache))
        jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.2)  # its default is 1
    if config.model.dtype == 'float64':
        jax.config.update('jax_enable_x64', True)
    return config


def config_file() -> pathlib.Path:
    """Return the path that --config names."""
    flag: Any = flags.FLAGS['config']
    return pathlib.Path(flag.config_filename)


def _parse(
    documentation: str, default_config: str, words: Sequence[str], argv: Sequence[str]
) -> list[str]:
    """Parse the command line; a mistake raises UserError instead of a traceback or two lines."""
    if {'--help', '-help', '-h', '--helpfull'}.intersection(argv[1:]):
        print(documentation, *_flag_lines(argv[0]), sep='\n')
        sys.exit(0)
    for argument in argv:
        if argument.startswith(('--config.', '-config.')):
            config_lib.check_field_name(argument.partition('config.')[2].partition('=')[0])
    given = any(argument.split('=')[0] in ('--config', '-config') for argument in argv)
    if default_config and not given:
        argv = [argv[0], f'--config={default_config}', *argv[1:]]
    try:
        rest = flags.FLAGS(argv)
    except Exception as error:  # of absl, of ml_collections, or raised by the config file
        missing = isinstance(error, ModuleNotFoundError) and error.name == 'configs'
        hint = '; start it in the checkout' if missing else ''
        raise UserError(f'command line: {_one_line(error)}{hint}') from error
    if words and (len(rest) < 2 or rest[1] not in words):
        found = f'{rest[1]!r} is none' if len(rest) > 1 else 'one is missing'
        raise UserError(f'command line: say what to do, one of {", ".join(words)}; {found}')
    if extra := rest[2 if words else 1 :]:
        raise UserError(f'command line: {extra[0]!r} is not a flag; flags begin with --')
    if _CONFIG.value is None:
        raise UserError('--config is missing; for example --config=configs/digits.py')
    if not config_file().is_file():
        raise UserError(
            f'--config={config_file()} is not a file; for example --config=configs/digits.py'
        )
    return rest


def _flag_lines(program: str) -> Iterator[str]:
    """Describe the flags of the program and of this file, and none of the many of libraries."""
    defined = flags.FLAGS.flags_by_module_dict()
    for flag in [*defined.get(__name__, []), *defined.get(program, [])]:
        yield f'  --{flag.name:<10} {flag.help}'


def _one_line(error: Exception) -> str:
    kind = '' if isinstance(error, flags.Error) else f'{type(error).__name__}: '
    return kind + ' '.join(str(error).split())
