"""Typed sections of a configuration: one frozen dataclass for each, beside the code that uses it.

A field is declared once, with a rule for its value, its role, and whether a resumed run may change
it:

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class LogConfig(Section):
        tensorboard: bool = field(boolean, role=PLACE)

`make` turns the nested mapping of a configuration into such sections; a field that is unknown,
missing or against its rule is an error of one line. A field that is added later declares `off`, the
value that changes nothing: a configuration that was saved without the field has that value.
"""

import dataclasses
import difflib
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from alexnet_jax.runtime.errors import UserError

# The role of a field. Runs that differ in a field of role MEANING are different experiments; runs
# that differ only in fields of role PLACE are repetitions of one experiment.
MEANING = 'meaning'  # what is computed, and from which data
SCHEDULE = 'schedule'  # the length, the drops of the learning rate, the evaluation
NUMERICS = 'numerics'  # how the same function is computed: dtype, precision, accumulation
PLACE = 'place'  # where a run computes and writes, what it logs, and its seed


@dataclasses.dataclass(frozen=True)
class Rule:
    """The rule for a field's value: a test, and its description for error messages."""

    accepts: Callable[[Any], bool]
    words: str


def is_integer(value: Any) -> bool:
    """Say whether a value is an integer and not a bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Say whether a value is a finite number."""
    return isinstance(value, float | int) and not isinstance(value, bool) and math.isfinite(value)


def integer(low: int) -> Rule:
    """Accept integers of at least `low`."""
    return Rule(lambda v: is_integer(v) and v >= low, f'an integer of at least {low}')


def number(low: float = -math.inf, below: float = math.inf) -> Rule:
    """Accept finite numbers of at least `low` and less than `below`."""
    words = 'a number'
    words += f' of at least {low:g}' if low > -math.inf else ''
    words += f' and below {below:g}' if below < math.inf else ''
    return Rule(lambda v: is_number(v) and low <= v < below, words)


def one_of(*choices: Any) -> Rule:
    """Accept these values, all of one type."""
    kind = type(choices[0])
    words = 'one of ' + ', '.join(map(str, choices))
    return Rule(lambda v: type(v) is kind and v in choices, words)


def tuple_of(accepts: Callable[[Any], bool], *lengths: int, words: str) -> Rule:
    """Accept tuples whose members all pass; their length must be in `lengths`, if any are given."""
    return Rule(
        lambda v: (
            isinstance(v, tuple) and (not lengths or len(v) in lengths) and all(map(accepts, v))
        ),
        words,
    )


above_zero = Rule(lambda v: is_number(v) and v > 0, 'a number above 0')
boolean = Rule(lambda v: isinstance(v, bool), 'true or false')
text = Rule(lambda v: isinstance(v, str), 'a string')
nonempty = Rule(lambda v: isinstance(v, str) and v != '', 'a string that is not empty')


def field(
    rule: Rule,
    *,
    role: str = MEANING,
    resume: bool | None = None,
    off: Any = dataclasses.MISSING,
) -> Any:
    """Declare a field of a section.

    Args:
      rule: the rule for its value.
      role: MEANING, SCHEDULE, NUMERICS or PLACE.
      resume: whether a resumed run may change it; by default it may, unless its role is MEANING.
      off: for a field that was added later, the value with which nothing changes.
    """
    resume = role != MEANING if resume is None else resume
    metadata = {'rule': rule, 'role': role, 'resume': resume}
    return dataclasses.field(default=off, metadata=metadata)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Section:
    """The base class of all sections; its constructor checks each field and then calls `check`."""

    def __post_init__(self) -> None:
        for declared in dataclasses.fields(self):
            rule, value = declared.metadata.get('rule'), getattr(self, declared.name)
            if rule and not rule.accepts(value):
                raise FieldError(declared.name, f' = {value!r} must be {rule.words}')
        self.check()

    def check(self) -> None:
        """Raise UserError where fields contradict each other."""


class FieldError(UserError):
    """An error in one field; each section that holds the field prepends its own name."""

    def __init__(self, field: str, words: str):
        super().__init__(f'config.{field}{words}')
        self.field, self.words = field, words


_S = TypeVar('_S', bound=Section)


def make(kind: type[_S], values: Mapping[str, Any]) -> _S:
    """Make a section, and those inside it, from a nested mapping; lists become tuples.

    Raises UserError, in one line, for a field that is unknown, missing or against its rule.
    """
    given = flatten(values)
    for path in given:
        require_field(kind, path)
    for path, declared in fields(kind).items():
        if path not in given and declared.default is dataclasses.MISSING:
            raise FieldError(path, ' is missing; start from configs/alexnet.py, which has it')
    return _make(kind, values)


def _make(kind: type[_S], values: Mapping[str, Any]) -> _S:
    made: dict[str, Any] = {}
    for declared in dataclasses.fields(kind):
        if declared.name in values:
            value = values[declared.name]
            inner = _section_of(declared)
            try:
                made[declared.name] = _make(inner, value) if inner else _as_tuples(value)
            except FieldError as error:
                raise FieldError(f'{declared.name}.{error.field}', error.words) from None
    return kind(**made)


def fields(kind: type[Section]) -> dict[str, dataclasses.Field]:
    """Return the declared fields of a section and of those inside it, by their dotted names."""
    found: dict[str, dataclasses.Field] = {}
    for declared in dataclasses.fields(kind):
        if inner := _section_of(declared):
            found |= {f'{declared.name}.{path}': f for path, f in fields(inner).items()}
        else:
            found[declared.name] = declared
    return found


def require_field(kind: type[Section], path: str) -> None:
    """Raise UserError, with the nearest name, for a dotted name that is not a field."""
    known = fields(kind)
    if path not in known:
        close = difflib.get_close_matches(path, known, n=1)
        hint = f'did you mean config.{close[0]}?' if close else 'configs/alexnet.py has all fields'
        raise FieldError(path, f' is not a field; {hint}')


def flatten(values: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
    """Return `{'section.field': value}` for a nested mapping, with lists as tuples."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f'{prefix}{key}.')
        else:
            flat[f'{prefix}{key}'] = _as_tuples(value)
    return flat


def with_off_values(kind: type[Section], flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return dotted names and values, with the `off` values of fields that are not in `flat`."""
    off = {n: f.default for n, f in fields(kind).items() if f.default is not dataclasses.MISSING}
    return {**off, **flat}


def differences(
    kind: type[Section], before: Mapping[str, Any], after: Mapping[str, Any]
) -> dict[str, tuple[Any, Any]]:
    """Return the fields in which two nested mappings differ, `{name: (before, after)}`.

    None stands for a field that one of the two does not have and that has no `off` value.
    """
    old, new = (with_off_values(kind, flatten(values)) for values in (before, after))
    both = {path: (old.get(path), new.get(path)) for path in sorted(old.keys() | new.keys())}
    return {path: pair for path, pair in both.items() if pair[0] != pair[1]}


def _section_of(declared: dataclasses.Field) -> type[Section] | None:
    """Return the type of a field that is a section, or None for a plain value."""
    kind = declared.type
    return kind if isinstance(kind, type) and issubclass(kind, Section) else None


def _as_tuples(value: Any) -> Any:
    return tuple(map(_as_tuples, value)) if isinstance(value, list | tuple) else value
