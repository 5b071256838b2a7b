"""Every path of the user: `~` is expanded, an object store is refused in one line."""

import pathlib

import pytest
from etils import epath

from alexnet_jax import config_command
from alexnet_jax.command_line import Parser
from alexnet_jax.runtime import storage
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.training import config as config_lib
from configs import alexnet
from tests.typed_config import typed

TINY = pathlib.Path(__file__).resolve().parents[2] / 'configs' / 'tiny.py'
STORES = ('gs://bucket/x', 's3://bucket/x')


def one_line(error) -> str:
    """Return the message, which is one line that says what to do instead."""
    message = str(error.value)
    assert '\n' not in message
    assert 'object stores are not supported; mount the bucket' in message
    return message


def test_the_home_directory_may_be_written_short(monkeypatch):
    monkeypatch.setenv('HOME', '/home/someone')
    assert storage.resolve('~/run', '--workdir') == epath.Path('/home/someone/run')
    assert storage.resolve(pathlib.Path('runs/digits'), '--workdir') == epath.Path('runs/digits')
    assert storage.data_directory('~/data') == '/home/someone/data'
    assert storage.data_directory('', '~/data') == '/home/someone/data'
    monkeypatch.setenv('TFDS_DATA_DIR', '~/data')
    assert storage.data_directory('') == '/home/someone/data'


def test_the_flag_then_the_field_then_the_environment_then_the_default(monkeypatch):
    monkeypatch.setenv('TFDS_DATA_DIR', '/environment')
    monkeypatch.setenv('HOME', '/home/someone')
    assert storage.data_directory('/flag', '/field') == '/flag'
    assert storage.data_directory('', '/field') == '/field'
    assert storage.data_directory('') == '/environment'
    monkeypatch.setenv('TFDS_DATA_DIR', '')
    assert storage.data_directory('') == '/home/someone/tensorflow_datasets'


def test_a_command_resolves_the_data_directory_once(monkeypatch):
    monkeypatch.setenv('HOME', '/home/someone')
    monkeypatch.setattr(config_command, '_set_up', lambda config: None)
    parser = Parser()
    config_command.add_options(parser)
    for arguments in (['--data_dir=~/data'], ['--config.data.dir=~/data']):
        _, config = config_command.parse(parser, [f'--config={TINY}', *arguments])
        assert config.data.dir == '/home/someone/data'


def test_the_cache_of_programs_may_lie_in_the_home_directory(monkeypatch):
    monkeypatch.setenv('HOME', '/home/someone')
    monkeypatch.setattr(config_command.mesh, 'select_platform', lambda cpu_devices: None)
    settings = {}
    monkeypatch.setattr(config_command.jax.config, 'update', settings.__setitem__)
    config_command._set_up(config_lib.load(TINY, ['--config.training.compilation_cache_dir=~/x']))
    assert settings['jax_compilation_cache_dir'] == '/home/someone/x'


@pytest.mark.parametrize('store', STORES)
def test_object_stores_are_refused_by_the_name_of_the_option(monkeypatch, store):
    with pytest.raises(UserError, match=f'^--workdir: {store} is not a path in the') as error:
        storage.resolve(store, '--workdir')
    one_line(error)
    monkeypatch.setenv('TFDS_DATA_DIR', store)
    for option, directories in {
        '--data_dir': (store,),
        'config.data.dir': ('', store),
        'TFDS_DATA_DIR': ('',),
    }.items():
        with pytest.raises(UserError, match=f'^{option}: {store} is not a path in the') as error:
            storage.data_directory(*directories)
        one_line(error)
    assert storage.data_directory('/flag') == '/flag'  # what is not used may be anything


@pytest.mark.parametrize('store', STORES)
@pytest.mark.parametrize(
    'field',
    [
        'data.dir',
        'training.init_from',
        'training.compilation_cache_dir',
        'evaluation.ensemble',
        'evaluation.ensemble_dir',
    ],
)
def test_object_stores_are_refused_by_the_name_of_the_field(field, store):
    value = ('runs/a', store) if field == 'evaluation.ensemble' else store
    config = alexnet.get_config()
    config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError) as error:
        typed(config)
    assert one_line(error).startswith(f'config.{field} = {value!r} must be ')
    with pytest.raises(UserError) as error:
        config_lib.load(TINY, [f'--config.{field}={value}'])
    assert one_line(error).startswith(f'config.{field} = ')


def test_a_path_that_some_library_would_misread_is_refused(monkeypatch, tmp_path):
    for path, words in {
        '/s3/run': r'--workdir: /s3/run is read as s3://run; use another name than /s3',
        '/gs/a/../b': r'--workdir: /gs/b is read as gs://b; use another',
        'runs/\udcff': r'is not UTF-8; choose another name',
        'a/' * 2000: r'--workdir: a path may have 3800 bytes at most',
    }.items():
        with pytest.raises(UserError, match=words) as error:
            storage.resolve(path, '--workdir')
        assert '\n' not in str(error.value)
        str(error.value).encode()
    for path in ('/s3x/run', '/mnt/s3/run', 's3/run', 'lr[0.1]', 'a\\b', 'file:x', 'é', 'x/'):
        assert storage.resolve(path, '--workdir') == epath.Path(path)
    with pytest.raises(UserError, match=r'init_from = .* must be a path in the file system'):
        config_lib.load(TINY, ['--config.training.init_from=runs/\udcff'])


def test_the_cause_of_a_failed_write_is_named_whoever_raises_it():
    raised = {
        OSError(122, 'Disk quota exceeded'): ('Disk quota exceeded', 'free some of your quota'),
        ValueError("DATA_LOSS: x\ny [os_error_code='5']"): ('Input/output error', 'have the disk'),
        TimeoutError(): ('TimeoutError', 'look for the cause there'),
        RuntimeError('one\ntwo'): ('one', 'look for the cause there'),
    }
    for error, (cause, remedy) in raised.items():
        line = str(storage.unwritten('a row to /x', error))
        assert line.startswith(f'cannot write a row to /x ({cause}); {remedy}')
        assert line.endswith(', then run the same command again')
        assert '\n' not in line
