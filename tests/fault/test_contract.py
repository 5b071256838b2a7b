"""The table of faults in docs/guarantees.md: thirty rows, and each test that it names is there."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / 'docs' / 'guarantees.md'


def _tests(file: str) -> set[str]:
    tree = ast.parse((ROOT / file).read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_each_of_thirty_faults_has_its_tests():
    rows = re.findall(r'^\| (\d+) \|((?:[^|]*\|){5})$', PAGE.read_text(), re.MULTILINE)
    assert [int(number) for number, _ in rows] == [*range(1, 31)]
    for number, row in rows:
        named = re.findall(r'`(tests/[\w/]+\.py)::(test_\w+)`', row)
        assert named, f'row {number} names no test'
        assert len(named) == row.count('::')
        for file, test in named:
            assert test in _tests(file), f'row {number}: there is no {file}::{test}'
