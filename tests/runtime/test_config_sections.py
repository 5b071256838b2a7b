"""Typed sections: what makes one, what is refused and in which words, and one field more."""

import dataclasses
import math

import pytest

from alexnet_jax.input.augment import AugmentConfig
from alexnet_jax.runtime import config as sections
from alexnet_jax.runtime.config import (
    MEANING,
    NUMERICS,
    PLACE,
    SCHEDULE,
    FieldError,
    Section,
    boolean,
    field,
    integer,
    number,
    one_of,
    text,
    tuple_of,
)
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.training.config import Config
from configs import alexnet


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layer(Section):
    features: int = field(integer(0))
    padding: tuple[int, int] = field(tuple_of(sections.is_integer, 2, words='two integers'))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model(Section):
    first: Layer
    second: Layer
    dropout: float = field(number(0.0, below=1.0))
    dtype: str = field(one_of('float32', 'float64'), role=NUMERICS)

    def check(self) -> None:
        if self.first.features < self.second.features:
            raise UserError('config.model.first is narrower than config.model.second')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Root(Section):
    seed: int = field(integer(0), role=PLACE, resume=False)
    model: Model
    epochs: float = field(number(0.0), role=SCHEDULE)


def values(**fields):
    """Return a nested mapping that makes a Root; `section__field` changes it."""
    layer = {'features': 4, 'padding': [1, 2]}
    model = {'first': layer, 'second': {**layer}, 'dropout': 0.5, 'dtype': 'float32'}
    nested = {'seed': 0, 'model': {**model, 'first': {**layer}}, 'epochs': 2.0}
    for name, value in fields.items():
        *path, last = name.split('__')
        section = nested
        for part in path:
            section = section[part]
        section[last] = value
    return nested


def refusal(given, kind=Root) -> str:
    with pytest.raises(UserError) as error:
        sections.make(kind, given)
    assert '\n' not in str(error.value)
    return str(error.value)


def test_sections_are_made_from_a_nested_mapping():
    root = sections.make(Root, values())
    assert root.model.first == Layer(features=4, padding=(1, 2))
    assert (root.seed, root.model.dropout, root.epochs) == (0, 0.5, 2.0)
    assert sections.make(Root, dataclasses.asdict(root)) == root
    with pytest.raises(dataclasses.FrozenInstanceError):
        root.seed = 1  # pyright: ignore


def test_lists_count_as_tuples_at_any_depth():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Pairs(Section):
        pairs: tuple[tuple[str, float], ...] = field(
            tuple_of(lambda v: isinstance(v, tuple), words='pairs')
        )

    assert sections.make(Pairs, {'pairs': [['a', 1.0], ['b', 2.0]]}).pairs == (
        ('a', 1.0),
        ('b', 2.0),
    )
    assert sections.flatten({'a': {'b': [1, [2]]}, 'c': 3}) == {'a.b': (1, (2,)), 'c': 3}


@pytest.mark.parametrize(
    ('fields', 'words'),
    [
        ({'sed': 1}, 'config.sed is not a field; did you mean config.seed?'),
        (
            {'model__first__featurs': 1},
            'config.model.first.featurs is not a field; did you mean config.model.first.features?',
        ),
        ({'zzzzzzz': 1}, 'config.zzzzzzz is not a field; configs/alexnet.py has all fields'),
        ({'model__zzzzzz': 1}, 'config.model.zzzzzz is not a field; '),
        ({'epochs': 'two'}, "config.epochs = 'two' must be a number of at least 0"),
        ({'epochs': math.nan}, 'config.epochs = nan must be a number'),
        ({'epochs': True}, 'config.epochs = True must be a number'),
        ({'model__dropout': 1.0}, 'config.model.dropout = 1.0 must be a number of at least 0 and '),
        ({'model__first__features': -1}, 'config.model.first.features = -1 must be an integer of '),
        ({'model__second__features': 2.0}, 'config.model.second.features = 2.0 must be an integer'),
        ({'model__first__padding': [1]}, 'config.model.first.padding = (1,) must be two integers'),
        ({'model__dtype': 'int8'}, "config.model.dtype = 'int8' must be one of float32, float64"),
        ({'model__first__features': 3}, 'config.model.first is narrower than config.model.second'),
    ],
)
def test_what_a_field_cannot_be_is_one_line_with_its_whole_name(fields, words):
    assert refusal(values(**fields)).startswith(words)


@pytest.mark.parametrize('name', ['seed', 'epochs', 'model.dropout', 'model.second.padding'])
def test_a_missing_field_is_named(name):
    given = section = values()
    *path, last = name.split('.')
    for part in path:
        section = section[part]
    del section[last]
    words = ' is missing; start from configs/alexnet.py, which has it'
    assert refusal(given) == f'config.{name}{words}'


def test_a_missing_section_is_named():
    given = values()
    del given['model']['first']
    assert refusal(given).startswith('config.model.first.features is missing; ')


@pytest.mark.parametrize('value', [1, None, 'first', [4]])
def test_what_stands_in_place_of_a_section_is_one_line(value):
    assert refusal(values(model__first=value)).startswith('config.model.first is not a field; ')


@pytest.mark.parametrize('value', [{'a': 1}, {}])
def test_a_section_in_place_of_a_field_is_one_line(value):
    refusal(values(seed=value))


def test_every_section_puts_its_name_before_that_of_the_field():
    with pytest.raises(FieldError, match=r'^config\.features = -1 must be an integer') as error:
        Layer(features=-1, padding=(0, 0))
    assert error.value.field == 'features'
    outer = FieldError(f'model.first.{error.value.field}', error.value.words)
    assert str(outer) == refusal(values(model__first__features=-1))


def test_one_of_takes_no_value_of_another_type():
    rule = one_of(1, 2)
    assert [v for v in (1, 2, True, 1.0, '1', 3) if rule.accepts(v)] == [1, 2]
    assert not boolean.accepts(1)
    assert not integer(0).accepts(True)
    assert text.accepts('')


def test_a_field_may_be_changed_on_resume_unless_it_is_of_the_meaning():
    declared = sections.fields(Root)
    resume = {name: f.metadata['resume'] for name, f in declared.items()}
    assert {name for name, may in resume.items() if may} == {'model.dtype', 'epochs'}
    assert declared['seed'].metadata['role'] == PLACE
    assert declared['model.first.features'].metadata['role'] == MEANING


# One field more. What a later release adds stands in configs/alexnet.py and in one dataclass, with
# the value that leaves everything as it was before.


def with_one_more(name: str, kind: type[Section], config: type[Section] = Config) -> type[Section]:
    """Return the root in which section `name` is `kind`."""
    return dataclasses.make_dataclass(
        'More', [(name, kind)], bases=(config,), frozen=True, kw_only=True
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class MoreAugment(AugmentConfig):
    """The section `augment` with one field more."""

    cutout_px: int = field(integer(0), off=0)


More = with_one_more('augment', MoreAugment)


def paper(**augment) -> dict:
    config = alexnet.get_config()
    with config.unlocked():
        config.augment.update(augment)
    return config.to_dict()


def test_one_field_more_is_accepted_and_its_absence_means_off():
    assert sections.make(More, paper(cutout_px=16)).augment.cutout_px == 16
    assert sections.make(More, paper()).augment.cutout_px == 0
    assert refusal(paper(cutout_px=-1), More).startswith('config.augment.cutout_px = -1 must be an')
    assert refusal(paper(cutout_px=1), Config).startswith('config.augment.cutout_px is not a field')
    assert 'did you mean config.augment.cutout_px?' in refusal(paper(cutout=1), More)


def test_a_run_saved_without_the_field_is_one_that_had_it_off():
    saved = Config.from_dict(paper()).to_dict()
    assert 'cutout_px' not in saved['augment']
    assert not sections.differences(More, saved, paper(cutout_px=0))
    assert sections.differences(More, saved, paper(cutout_px=16)) == {'augment.cutout_px': (0, 16)}
    assert sections.differences(More, paper(cutout_px=16), saved) == {'augment.cutout_px': (16, 0)}
    assert sections.with_off_values(More, sections.flatten(saved))['augment.cutout_px'] == 0


def test_a_resumed_run_may_have_the_field_off_and_not_on():
    saved = Config.from_dict(paper()).to_dict()
    assert not More.from_dict(paper()).changes_since(saved)
    with pytest.raises(UserError, match=r'config\.augment\.cutout_px is 16, but the run .* has 0'):
        More.from_dict(paper(cutout_px=16)).changes_since(saved)
    # and back: a run of the later release, with the field off, goes on
    assert not Config.from_dict(paper()).changes_since(More.from_dict(paper()).to_dict())


def test_a_field_without_an_off_value_is_required():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Required(AugmentConfig):
        cutout_px: int = field(integer(0))

    words = 'config.augment.cutout_px is missing; start from configs/alexnet.py, which has it'
    assert refusal(paper(), with_one_more('augment', Required)) == words
