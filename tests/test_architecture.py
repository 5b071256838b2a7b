"""docs/architecture.md sends its readers to code that is there."""

import ast
import re
from pathlib import Path

import pytest

from alexnet_jax.runtime.config import flatten
from configs import alexnet

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / 'docs' / 'architecture.md').read_text()


def _rows() -> list[list[str]]:
    """Return the cells of each row of the table "Where do I change ...?", without its head."""
    section = PAGE.partition('\n## Where do I change ...?\n')[2].partition('\n## ')[0]
    table = [line for line in section.splitlines() if line.startswith('|')]
    return [[cell.strip() for cell in line.strip('|').split('|')] for line in table[2:]]


def _defined(file: Path) -> set[str]:
    """Return the functions, classes and constants of a module, and its methods as Class.method."""
    names: set[str] = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            methods = (part for part in node.body if isinstance(part, ast.FunctionDef))
            names |= {f'{node.name}.{method.name}' for method in methods}
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, 'target', None)]
        names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


def _code(cell: str) -> list[str]:
    return re.findall(r'`([^`]+)`', cell)


@pytest.mark.parametrize('row', _rows(), ids=lambda row: row[0])
def test_each_place_of_a_change_is_there(row):
    _, fields, files, names = row
    paths = [(ROOT / 'docs' / link).resolve() for link in re.findall(r'\]\(([^)]+)\)', files)]
    assert paths, f'no file in {row}'
    missing = [str(path.relative_to(ROOT)) for path in paths if not path.is_file()]
    assert not missing, f'docs/architecture.md names files that are not there: {missing}'
    defined = set().union(*map(_defined, paths))
    gone = [name for name in _code(names) if name not in defined]
    assert _code(names), f'no name in {row}'
    assert not gone, f'docs/architecture.md names {gone}, which {files} does not define'
    known = flatten(alexnet.get_config().to_dict())
    unknown = [field for field in _code(fields) if field not in known]
    assert not unknown, f'docs/architecture.md names fields that are not there: {unknown}'


def test_the_table_answers_what_readers_ask():
    assert len(_rows()) >= 15
