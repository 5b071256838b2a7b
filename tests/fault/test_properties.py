"""Whatever a field or an image is given, it is that or one line: no traceback, no warning.

The examples are the same in each run; PROPERTY_EXAMPLES=5000 in the environment draws others.
"""

import ast
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alexnet_jax.preparation import images
from alexnet_jax.runtime import config as sections
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.training import config as config_lib
from configs import alexnet
from tests.fault.properties import examples, picture

pytestmark = pytest.mark.fault
ROOT = Path(__file__).resolve().parents[2]

# Overrides of the command line.

FIELDS = sorted(sections.fields(config_lib.Config))
PAPER = sections.flatten(alexnet.get_config().to_dict())
VALUES = st.one_of(
    st.text(max_size=12),
    st.integers().map(str),
    st.floats().map(str),
    st.lists(st.integers(-9, 99), max_size=3).map(lambda v: str(tuple(v))),
    st.sampled_from(['', ' ', 'true', 'False', 'yes', '1', '0', '0x10', '1_000', '1e3', '1e400']),
    st.sampled_from(["''", '()', '(1,', '[1, 2]', "('a', 1)", 'None', 'nan', '-inf', '(' * 300]),
    st.sampled_from(['gs://a', '~', '@x', '"', 'é', '\0', '1\n2', '\ud800', '9' * 5000]),
    st.sampled_from(['{}', '{8, 7, 1}', "{'a': 1}", '__import__("os")']),
)


def said(text: str, like: Any) -> Any:
    """Return the value that a text gives a field like this one, by Python's own reading."""
    if isinstance(like, bool):
        return {'true': True, '1': True, 'false': False, '0': False}[text.lower()]
    if isinstance(like, tuple):
        value = ast.literal_eval(text)
        return sections._as_tuples(value if isinstance(value, list | tuple) else (value,))
    if isinstance(like, int):
        bases = {'0x': 16, '0o': 8}  # as absl reads integers
        return int(text, bases.get(text.strip().lower()[:2], 10))
    return text if isinstance(like, str) else type(like)(text)


@examples(60)
@given(st.sampled_from(FIELDS), VALUES)
def test_an_override_gives_the_value_or_one_line(field, text):
    try:
        config = config_lib.load(ROOT / 'configs' / 'alexnet.py', [f'--config.{field}={text}'])
    except UserError as caught:
        error = str(caught)
    else:
        error = ''
    if error:
        assert len(error.splitlines()) == 1
        assert field.rpartition('.')[2] in error
        return
    flat = sections.flatten(config.to_dict())
    assert flat.pop(field) == said(text, PAPER[field])
    assert flat == {name: value for name, value in PAPER.items() if name != field}


# Images.

MODES = {
    'JPEG': ('RGB', 'L', 'CMYK'),
    'PNG': ('RGB', 'RGBA', 'L', 'LA', 'P', '1', 'I;16'),
    'WEBP': ('RGB', 'RGBA'),
    'GIF': ('P', 'L'),
    'BMP': ('RGB', 'L', '1', 'P'),
    'TIFF': ('RGB', 'L', 'CMYK', 'RGBA', '1', 'F'),
}
KINDS = [(format, mode) for format, modes in MODES.items() for mode in modes]
PLAIN = {('JPEG', mode) for mode in MODES['JPEG']} | {('PNG', m) for m in MODES['PNG'][:-1]}


@st.composite
def mutated(draw: Any, data: bytes) -> bytes:
    """Draw a file with some bytes changed, cut short, or with bytes left out or put in."""
    how = draw(st.sampled_from(['as is', 'bytes', 'bytes', 'cut', 'without', 'with', 'behind']))
    at = draw(st.integers(0, len(data)))
    if how == 'bytes':
        changed = bytearray(data)
        for at, byte in draw(
            st.lists(st.tuples(st.integers(0, len(data) - 1), st.integers(0, 255)))
        ):
            changed[at] = byte
        return bytes(changed)
    if how == 'cut':
        return data[:at]
    if how == 'without':
        return data[:at] + data[at + draw(st.integers(1, 50)) :]
    if how == 'with':
        return data[:at] + draw(st.binary(max_size=50)) + data[at:]
    return data + draw(st.binary(max_size=50)) if how == 'behind' else data


@examples(150)
@given(
    st.data(),
    st.sampled_from(KINDS),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.sampled_from(['a.jpg', 'a.png', 'a', 'a.JPEG', 'a.webp', 'a.gif']),
)
def test_an_image_is_decoded_or_unreadable(data, kind, size, name):
    """Nothing but `Unreadable`, no warning, and within the limit of pixels."""
    file = picture(0, size, *kind)
    changed = data.draw(mutated(file))
    image, error = None, None
    try:
        image, odd = images.decode(changed, name, max_pixels=10_000)
    except images.Unreadable as caught:
        error = caught
    if image is None:
        assert error.kind in ('broken', 'too large')
        assert len(str(error).splitlines()) <= 1
        assert changed != file or kind not in PLAIN, 'a sound file is read'
        return
    assert image.mode == 'RGB'
    assert image.width * image.height <= 10_000
    assert all(isinstance(word, str) for word in odd)
    if changed == file:
        assert image.size == size


@examples(50)
@given(st.binary(max_size=300), st.sampled_from([b'', b'\xff\xd8\xff', b'\x1f\x8b\x08']))
def test_bytes_are_no_image(data, start):
    with pytest.raises(images.Unreadable):
        images.decode(start + data)
