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

FORBIDDEN_NAMES = {'utils.py', 'common.py'}


def package_files() -> dict[str, Path]:
    """Return the package's modules: dotted name without the package's -> file."""
    files = sorted((ROOT / PACKAGE).rglob('*.py'))
    names = ['.'.join(f.relative_to(ROOT / PACKAGE).with_suffix('').parts) for f in files]
    return {name: f for name, f in zip(names, files, strict=True)}


MODULES = package_files()
FILES = [*MODULES.values(), *sorted((ROOT / 'configs').rglob('*.py'))]
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


def test_the_contracts_of_import_linter_hold():
    """The order of the packages, no circles, no pickle, no TensorFlow: see `pyproject.toml`."""
    command = [str(Path(sys.executable).parent / 'lint-imports'), '--no-cache']
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert ' 0 broken' in done.stdout


def test_init_files_import_nothing():
    busy = [str(file) for file in FILES if file.name == '__init__.py' and any(imports(file))]
    busy = [file for file in busy if not file.endswith('inference/__init__.py')]  # for users
    assert not busy, f'import from the module itself, not by way of {busy}'


@each_file
def test_nothing_forbidden(file):
    assert file.name not in FORBIDDEN_NAMES, f'{file}: name it for the one thing that it does'
    for node in ast.walk(parse(file)):
        where = f'{file}:{getattr(node, "lineno", 0)}'
        if isinstance(node, ast.keyword) and node.arg == 'allow_pickle':
            refused = isinstance(node.value, ast.Constant) and node.value.value is False
            assert refused, f'{where}: allow_pickle runs code from data; use npz without objects'
        if isinstance(node, ast.Attribute):
            assert ast.unparse(node) != 'torch.load', f'{where}: torch.load runs pickle'


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
    """Return the first column of the table in docs/deviations.md, without its head."""
    page, title = (ROOT / 'docs' / 'deviations.md').read_text(), '## Where this implementation'
    _, heading, section = page.partition(f'\n{title}')
    assert heading, f'docs/deviations.md has no heading "{title} ..."'
    table = [line for line in section.partition('\n## ')[0].splitlines() if line.startswith('|')]
    return [line.split('|')[1].strip() for line in table[2:]]


def test_each_deviation_has_its_row_and_each_row_its_comment():
    comments, rows = deviation_comments(), deviation_rows()
    assert rows, 'the first table of docs/deviations.md is empty'
    assert len(rows) == len(set(rows)), f'twice in the table of docs/deviations.md: {rows}'
    missing = {name: where for name, where in comments.items() if name not in rows}
    assert not missing, f'add rows to the table of docs/deviations.md for {missing}'
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
