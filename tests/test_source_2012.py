"""docs/source_2012.md gives the values that `configs/krizhevsky_2012.py` has."""

import ast
import re
from pathlib import Path

import pytest

from configs import alexnet, krizhevsky_2012

PAGE = Path(__file__).resolve().parents[1] / 'docs/source_2012.md'
ROWS = [line for line in PAGE.read_text().splitlines() if line.startswith('| ')]
STATED = sorted(set(re.findall(r'`(\w+(?:\.\w+)+) = ([^`]+)`', '\n'.join(ROWS))))


@pytest.mark.parametrize(('name', 'value'), STATED, ids=[name for name, _ in STATED])
def test_a_field_has_the_value_of_the_page(name, value):
    found = krizhevsky_2012.get_config()
    for part in name.split('.'):
        found = found[part]
    assert found == ast.literal_eval(value)


def test_the_page_has_every_event():
    events = [
        ast.literal_eval(text) for text in re.findall(r"`(\(\d+, '\w+', [^`]+\))`", str(ROWS))
    ]
    assert tuple(events) == krizhevsky_2012.get_config().optim.events


def test_the_page_names_every_field_that_this_configuration_changes():
    paper, author = (dict(_flat(module.get_config())) for module in (alexnet, krizhevsky_2012))
    changed = {name for name in author if author[name] != paper[name]}
    assert changed - {'optim.schedule', 'optim.events'} <= {name for name, _ in STATED}


def _flat(config, prefix=''):
    for name, value in config.items():
        if hasattr(value, 'items'):
            yield from _flat(value, f'{prefix}{name}.')
        else:
            yield f'{prefix}{name}', value
