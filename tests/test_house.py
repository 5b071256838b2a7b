"""The rules of the house, read from the source; CONTRIBUTING.md states them in words."""

import ast
import functools
import io
import re
import subprocess
import sys
import tokenize
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = 'alexnet_jax'

# A module imports from the floors below its own, and along these arrows within it.
FLOORS = (
    {'config', 'fields', 'paper', 'metrics', 'arguments', 'locks', 'heap'},
    {'parallel.mesh', 'parallel.collectives', 'parallel.processes', 'data.batch'},
    {'network.model', 'network.layers', 'network.convolution', 'network.pooling', 'network.local'}
    | {'data.augment'},
    {'training.step', 'training.optim'}
    | {'data.pipeline', 'data.digits', 'data.sources', 'data.records', 'data.stats'}
    | {'data.images', 'data.archives', 'data.photographs', 'data.imagenet', 'data.folder'}
    | {'data.shard_files', 'data.devkit', 'data.tfds_imagenet', 'data.examples'},
    {'training.loop', 'training.experiment', 'training.evaluate'}
    | {'training.checkpoint', 'training.manifest', 'training.guard', 'training.describe'}
    | {'training.provenance', 'training.pretrained', 'training.ensemble', 'training.check'}
    | {'training.evaluate_checkpoint'},
    {'command_line', 'reproduction', 'comparison', 'runs'}
    | {'benchmarks.timing', 'benchmarks.input', 'benchmarks.prepare', 'benchmarks.prediction'}
    | {'benchmarks.communication', 'benchmarks.end_to_end', 'benchmarks.startup'}
    | {'benchmarks.step', 'benchmarks.layers', 'benchmarks.problem'}
    | {'benchmarks.plain_step', 'benchmarks.torch_step'},
    {'main', 'prepare', 'figures', 'benchmark', 'report'},
)
ARROWS = {
    'comparison': {'reproduction', 'runs'},
    'reproduction': {'runs'},
    'config': {'fields'},
    'metrics': {'config'},
    'parallel.mesh': {'parallel.collectives'},
    'network.model': {'network.layers', 'network.pooling', 'network.local'},
    'network.layers': {'network.convolution'},
    'network.local': {'network.layers'},
    'training.step': {'training.optim'},
    'data.pipeline': {'data.digits', 'data.sources', 'data.stats'},
    'data.sources': {'data.examples'},
    'data.digits': {'data.records'},
    'data.records': {'data.shard_files'},
    'data.photographs': {'data.records', 'data.shard_files', 'data.images', 'data.archives'},
    'data.imagenet': {'data.photographs', 'data.archives', 'data.devkit', 'data.tfds_imagenet'},
    'data.folder': {'data.photographs', 'data.archives'},
    'training.loop': {'training.experiment', 'training.checkpoint', 'training.guard'}
    | {'training.provenance', 'training.pretrained'},
    'training.evaluate_checkpoint': {'training.experiment', 'training.manifest'}
    | {'training.pretrained', 'training.provenance'},
    'training.checkpoint': {'training.manifest'},
    'training.pretrained': {'training.checkpoint', 'training.experiment'},
    'training.check': {'training.experiment'},
    'training.ensemble': {'training.experiment', 'training.manifest'}
    | {'training.pretrained', 'training.provenance'},
    'training.experiment': {'training.evaluate'},
    'training.describe': {'training.experiment'},
    'training.provenance': {'training.experiment'},
    'benchmarks.input': {'benchmarks.timing'},
    'benchmarks.end_to_end': {'benchmarks.timing'},
    'benchmarks.startup': {'benchmarks.timing'},
    'benchmarks.prediction': {'benchmarks.communication'},
    'benchmarks.prepare': {'benchmarks.timing'},
    'benchmarks.step': {'benchmarks.timing', 'benchmarks.problem'},
    'benchmarks.layers': {'benchmarks.timing', 'benchmarks.problem', 'benchmarks.step'},
    'benchmarks.problem': {'benchmarks.plain_step'},
}
FLOOR = {module: floor for floor, modules in enumerate(FLOORS) for module in modules}

MAX_FILE_LINES = 320
MAX_FUNCTION_LINES = 70
FORBIDDEN_IMPORTS = {'tensorflow', 'pickle', 'cloudpickle', 'dill', 'joblib'}
FORBIDDEN_NAMES = {'utils.py', 'common.py'}


def package_files() -> dict[str, Path]:
    """Return the package's modules: dotted name without the package's -> file."""
    files = sorted((ROOT / PACKAGE).rglob('*.py'))
    names = ['.'.join(f.relative_to(ROOT / PACKAGE).with_suffix('').parts) for f in files]
    return {name: f for name, f in zip(names, files, strict=True)}


MODULES = package_files()
CODE = [name for name in MODULES if name.split('.')[-1] != '__init__']
FILES = [*MODULES.values(), *sorted((ROOT / 'configs').rglob('*.py'))]
each_module = pytest.mark.parametrize('module', CODE)
each_file = pytest.mark.parametrize('file', FILES, ids=lambda f: str(f.relative_to(ROOT)))


@functools.cache
def parse(file: Path) -> ast.Module:
    return ast.parse(file.read_text(), str(file))


def imports(file: Path) -> Iterator[tuple[str, int]]:
    """Yield (dotted name, line) of all that a file imports, inside functions too."""
    for node in ast.walk(parse(file)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f'{file}:{node.lineno}: import by the full name'
            yield from ((f'{node.module}.{alias.name}', node.lineno) for alias in node.names)


def own_module(name: str) -> str | None:
    """Return the module of the package that the import of `name` reads, None for other packages."""
    package, *parts = name.split('.')
    if package != PACKAGE:
        return None
    while parts and '.'.join(parts) not in MODULES:
        parts.pop()  # a function or a class of the module
    return '.'.join(parts)


def test_the_table_of_floors_is_complete():
    unplaced, gone = sorted(set(CODE) - set(FLOOR)), sorted(set(FLOOR) - set(CODE))
    assert not unplaced, f'give {unplaced} a place in FLOORS of tests/test_house.py'
    assert not gone, f'not in {PACKAGE}/, so not in FLOORS of tests/test_house.py: {gone}'
    assert any('configs' in file.parts for file in FILES), 'no file in configs/'


@each_module
def test_a_module_imports_from_lower_floors(module):
    assert module in FLOOR, f'give {module} a place in FLOORS of tests/test_house.py'
    for name, line in imports(MODULES[module]):
        other = own_module(name)
        if not other:
            continue
        floor, its_floor = FLOOR[module], FLOOR.get(other, len(FLOORS))
        assert its_floor < floor or other in ARROWS.get(module, ()), (
            f'{MODULES[module]}:{line}: {module} (floor {floor}) may not import {other} '
            f'(floor {its_floor}); pass what it needs as an argument, or move it down'
        )


def test_init_files_import_nothing():
    busy = [str(file) for file in FILES if file.name == '__init__.py' and any(imports(file))]
    assert not busy, f'import from the module itself, not by way of {busy}'


@each_file
def test_nothing_forbidden(file):
    assert file.name not in FORBIDDEN_NAMES, f'{file}: name it for the one thing that it does'
    for name, line in imports(file):
        top = name.split('.')[0]
        assert top not in FORBIDDEN_IMPORTS, f'{file}:{line}: {top} may not be used here'
        if PACKAGE in file.relative_to(ROOT).parts:
            assert top != 'configs', f'{file}:{line}: the package never imports configs/'
    for node in ast.walk(parse(file)):
        where = f'{file}:{getattr(node, "lineno", 0)}'
        if isinstance(node, ast.keyword) and node.arg == 'allow_pickle':
            refused = isinstance(node.value, ast.Constant) and node.value.value is False
            assert refused, f'{where}: allow_pickle runs code from data; use npz without objects'
        if isinstance(node, ast.Attribute):
            assert ast.unparse(node) != 'torch.load', f'{where}: torch.load runs pickle'


@pytest.mark.parametrize('module', MODULES)
def test_sizes(module):
    file = MODULES[module]
    lines = len(file.read_text().splitlines())
    assert lines <= MAX_FILE_LINES, f'{file} has {lines} lines; part it by purpose'
    for node in ast.walk(parse(file)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            assert lines <= MAX_FUNCTION_LINES, f'{file}: {node.name} has {lines} lines; part it'


def test_importing_main_stays_light():
    heavy = {'tensorflow', 'torch', 'sklearn'}
    code = f'import sys, {PACKAGE}.main; print(*sorted({heavy} & set(sys.modules)))'
    run = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert not run.stdout.split(), f'imported by {PACKAGE}.main: {run.stdout}; import where needed'


def deviation_comments() -> dict[str, str]:
    """Return the short names of the `# DEVIATION: name - text` comments, with their places."""
    found = {}
    for file in FILES:
        for token in tokenize.generate_tokens(io.StringIO(file.read_text()).readline):
            if token.type == tokenize.COMMENT and 'DEVIATION' in token.string:
                where = f'{file}:{token.start[0]}'
                match = re.fullmatch(r'# DEVIATION: (.+?)(?: - .*)?', token.string)
                assert match, f'{where}: write "# DEVIATION: name - text"'
                found[match[1].strip()] = where
    return found


def deviation_rows() -> list[str]:
    """Return the first column of the README's table of deviations, without its head."""
    readme = (ROOT / 'README.md').read_text()
    _, heading, section = readme.partition('## Deviations from the paper\n')
    assert heading, 'README.md has no heading "## Deviations from the paper"'
    table = [line for line in section.partition('\n## ')[0].splitlines() if line.startswith('|')]
    return [line.split('|')[1].strip() for line in table[2:]]


def test_each_deviation_has_its_row_and_each_row_its_comment():
    comments, rows = deviation_comments(), deviation_rows()
    assert rows, 'the table "Deviations from the paper" of README.md is empty'
    assert len(rows) == len(set(rows)), f'twice in the table of README.md: {rows}'
    missing = {name: where for name, where in comments.items() if name not in rows}
    assert not missing, f'add rows to the table of README.md for {missing}'
    stale = set(rows) - set(comments)
    assert not stale, f'no "# DEVIATION: name" comment in the code for these rows: {sorted(stale)}'


def test_facts_that_stand_in_two_files_agree():
    version = re.search(r"__version__ = '(.+)'", (ROOT / PACKAGE / '__init__.py').read_text())
    assert version, f'{PACKAGE}/__init__.py states no __version__'
    assert f'\nversion: {version[1]}\n' in (ROOT / 'CITATION.cff').read_text(), 'mend CITATION.cff'
    project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
    dev = (ROOT / 'requirements-dev.txt').read_text()
    for requirement in project['optional-dependencies']['compare']:
        assert f'\n{requirement} ' in dev, f'requirements-dev.txt must pin {requirement} too'
