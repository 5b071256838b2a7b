"""Whatever a folder or an archive holds, the data set is exactly that, or the error is one line.

The examples are the same in each run; PROPERTY_EXAMPLES=5000 in the environment draws others.
"""

import collections
import contextlib
import gzip
import io
import json
import lzma
import os
import subprocess
import tarfile
import tempfile
import unicodedata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from alexnet_jax import prepare
from tests.fault.properties import examples, picture

pytestmark = pytest.mark.fault

SPLITS = ('train', 'test', 'validation', 'val')
SYSTEM = {'@eaDir', '__MACOSX', 'lost+found', '$RECYCLE.BIN', 'System Volume Information'}
IMAGES = ('.png', '.jpg', '.jpeg')
PLAIN_CLASSES = ['ant', 'bee', 'c d', '0', '10', '9', '日本', "l'as", '#1']
ODD_CLASSES = ['É', 'E\u0301', ' lead', 'trail ', 'new\nline', 'a\\b', '\udcff', 'valid', 'Train']
ODD_CLASSES += ['test', 'val', '.hidden', '.ipynb_checkpoints', 'a\x85b', 'a\u2028b', '\u200b']
ODD_CLASSES += sorted(SYSTEM)
PLAIN_FILES = ['1.png', '10.PNG', '2.JPG', 'ü.jpeg', 'a b.png']
ODD_FILES = [
    '.1.png',
    '._1.png',
    'Thumbs.db',
    'note.txt',
    'x.heic',
    'png',
    'a\nb.png',
    '\udcff.png',
]


@st.composite
def trees(draw: Any) -> tuple[dict[str, Any], bool]:
    """Draw {path: file} and whether all of it is plain, so that it must be read.

    A file is a number, for the pixels of an image; bytes; `(target,)`, a symbolic link; or None, an
    empty folder.
    """
    plain = draw(st.booleans())
    splits = draw(st.sampled_from([('',), ('train/', 'test/'), ('train/', 'val/'), ('train/',)]))
    above = draw(st.sampled_from(['', 'outer/', 'a/b/']))
    names = PLAIN_CLASSES if plain else PLAIN_CLASSES + ODD_CLASSES
    files: dict[str, Any] = {}
    for name in draw(st.lists(st.sampled_from(names), min_size=1, max_size=4, unique=True)):
        for split in splits:
            own = draw(
                st.lists(
                    st.sampled_from(PLAIN_FILES if plain else PLAIN_FILES * 2 + ODD_FILES),
                    min_size=int(plain),
                    max_size=3,
                    unique=True,
                )
            )
            for file in own:
                files[f'{above}{split}{name}/{file}'] = len(files)
            if not own:
                files[f'{above}{split}{name}'] = None
    if not plain and files:
        first = next(iter(files))
        odd = {
            f'{above}readme.txt': b'text',
            f'{above}stray.png': 99,
            f'{above}.DS_Store': b'x',
            f'{above}{splits[0]}ant/deeper/1.png': 98,
            f'{above}{splits[0]}bee/broken.png': b'not an image',
            f'{above}{splits[0]}bee/link.png': (os.path.basename(first),),
            f'{above}{splits[0]}cat/out.png': ('../../../../../outside/secret.png',),
            f'{above}{splits[0]}dog': ('/outside',),
        }
        for path in draw(st.sets(st.sampled_from(sorted(odd)), max_size=2)):
            files.setdefault(path, odd[path])
    return files, plain


def content(file: Any) -> bytes:
    return picture(file, (4, 4)) if isinstance(file, int) else file


def write_tree(root: Path, files: dict[str, Any]) -> None:
    for name, file in files.items():
        path = root / name
        with contextlib.suppress(FileExistsError):  # a link where others have a folder
            path.parent.mkdir(parents=True, exist_ok=True)
            if file is None:
                path.mkdir()
            elif isinstance(file, tuple):
                path.symlink_to(file[0].replace('/outside', str(root.parent / 'outside')))
            else:
                path.write_bytes(content(file))


def walk(root: Path) -> tuple[collections.Counter, set[str], set[str]]:
    """Return what a data set of a folder must hold, by a walk that knows nothing of the product.

    That is the count of each (split, class, pixels), the names of all folders that must be
    classes, and those of the visible files that are no images.
    """
    found, classes, others = collections.Counter(), set(), set()
    waiting, real = [root], os.path.realpath(root)
    while waiting:
        folder = waiting.pop()
        entries = [p for p in folder.iterdir() if not p.name.startswith('.')]
        entries = [p for p in entries if p.name not in SYSTEM]
        inner = [p for p in entries if p.is_dir() and not p.is_symlink()]
        waiting += inner
        if not inner and folder != root:
            classes.add(folder.name)
        for path in entries:
            inside = os.path.realpath(path).startswith(real + os.sep)
            if path.is_file() and inside and path.name.lower().endswith(IMAGES):
                split = folder.parent.name if folder.parent != root.parent else ''
                with contextlib.suppress(OSError):  # it cannot be in a data set
                    pixels = np.asarray(Image.open(path).convert('RGB')).tobytes()
                    found[split if split in SPLITS else 'train', folder.name, pixels] += 1
            elif path.is_file() and not path.is_symlink() and path.name != 'Thumbs.db':
                others.add(path.name)
    return found, classes, others


def snapshot(root: Path) -> dict[str, Any]:
    """Return all below a folder but `data`: names, and the bytes of files."""
    return {
        str(path.relative_to(root)): path.read_bytes() if path.is_file() else None
        for path in root.rglob('*')
        if path.relative_to(root).parts[0] != 'data'
    }


def run(source: Path, data_dir: Path) -> tuple[int, str]:
    """Run `prepare folder`, with --eval_fraction=0 where there is no split to test on."""
    for flags in (['--eval_fraction=0'], []):
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            words = ['folder', f'--source={source}', f'--data_dir={data_dir}', '--name=own']
            code = prepare.main([*words, '--size=0', '--workers=1', *flags])
        if 'leave out --eval_fraction' not in err.getvalue():
            break
    return code, err.getvalue()


def check(source: Path, unpacked: Path, must_succeed: bool, must_fail: bool = False) -> None:
    """Prepare `source` and hold the outcome against a walk of the folder `unpacked`."""
    root = source.parent
    before = snapshot(root)
    code, errors = run(source, root / 'data')
    assert snapshot(root) == before
    written = list((root / 'data').iterdir()) if (root / 'data').exists() else []
    assert [path.name for path in written] in ([], ['own'])
    directory = root / 'data' / 'own' / '1.0.0'
    if code != 0:
        assert code == 2
        assert errors.startswith('error: ')
        assert len(errors.splitlines()) == 1, errors
        assert not (directory / 'dataset_info.json').exists()
        assert not must_succeed, errors
        return
    assert not must_fail
    found, classes, others = walk(unpacked)
    builder: Any = tfds.builder_from_directory(directory)
    names = builder.info.features['label'].names
    got = collections.Counter(
        (split, names[example['label']], example['image'].tobytes())
        for split in builder.info.splits
        for example in builder.as_data_source(split)
    )
    assert got == found
    assert set(names) >= classes
    assert len({unicodedata.normalize('NFC', name) for name in names}) == len(names)
    report = json.loads((directory / 'report.json').read_text())
    ignored = {name.rpartition('/')[2] for of in report['ignored'].values() for name in of}
    assert ignored >= {name for name in others if name.isprintable()}


@contextlib.contextmanager
def workplace() -> Any:
    """A folder with a picture that no source has, in the folder `outside`."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        (root / 'outside').mkdir()
        (root / 'outside' / 'secret.png').write_bytes(picture(77, (4, 4)))
        yield root


@examples(50)
@given(trees())
def test_a_folder_is_held_whole_or_refused_in_one_line(tree):
    files, plain = tree
    with workplace() as root:
        source = root / 'source'
        source.mkdir()
        write_tree(source, files)
        check(source, source, must_succeed=plain)


PACKINGS = {
    '.tar': lambda data: data,
    '.tar.gz': lambda data: gzip.compress(data, 1),
    '.tar.xz': lambda data: lzma.compress(data, preset=0),
}
SECOND = [('zebra/1.png', 60), ('zebra/2.png', 61)]
FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]


def tar_of(members: list[tuple[str, Any]], format: int) -> bytes:
    """Return a tar of (name, file); a file is as in `trees`, or ('hard', target), a hard link."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode='w', format=format) as tar:
        for name, file in members:
            info = tarfile.TarInfo(name)
            if file is None:
                info.type = tarfile.DIRTYPE
            elif isinstance(file, tuple):
                info.type = tarfile.LNKTYPE if len(file) == 2 else tarfile.SYMTYPE
                info.linkname = file[-1]
            else:
                info.size = len(content(file))
            with contextlib.suppress(ValueError, UnicodeError):  # no name of ustar
                tar.addfile(info, io.BytesIO(content(file)) if info.size else None)
    return buffer.getvalue()


class Archive(NamedTuple):
    """How an archive is made; `must_succeed` and `must_fail` say what is known of the outcome."""

    members: list[tuple[str, Any]]
    format: int
    changes: list[tuple]
    suffix: str
    changes_when_packed: list[tuple]
    must_succeed: bool
    must_fail: bool

    def data(self) -> bytes:
        data = changed(tar_of(self.members, self.format), self.changes)
        return changed(PACKINGS[self.suffix](data), self.changes_when_packed)


def changed(data: bytes, changes: list[tuple]) -> bytes:
    """Return data after each change; a place is a part of the length, from 0 to 1."""
    for how, place, what in changes:
        at = int(place * (len(data) - 1))
        if how == 'cut':
            data = data[:at]
        elif how == 'flip' and data:
            data = data[:at] + bytes([data[at] ^ what]) + data[at + 1 :]
        elif how == 'flip in a header' and len(data) > 512:
            at = at // 512 * 512 + int(place * 1e6) % 512
            data = data[:at] + bytes([data[at] ^ what]) + data[at + 1 :]
        elif how == 'behind':
            data += b'noise' * 99 if what == 'noise' else tar_of(SECOND, tarfile.GNU_FORMAT)
    return data


@st.composite
def archives(draw: Any) -> Archive:
    """Draw an archive of a tree, of other members besides, and of damage."""
    files, plain = draw(trees())
    members, bad = list(files.items()), False
    if not plain:
        first = next((name for name, file in members if isinstance(file, int)), 'none')
        extra = {
            'twice': (first, 55),
            'hard': (f'{first}.hard.png', ('hard', first)),
            'soft': (f'{first}.soft.png', (os.path.basename(first),)),
            'up': ('../up.png', 56),
            'up within': ('ant/../../up.png', 56),
            'absolute': ('/tmp/absolute.png', 56),
            'hard out': ('ant/hard.png', ('hard', '/etc/passwd')),
        }
        for how in draw(st.sets(st.sampled_from(sorted(extra)), max_size=2)):
            members.append(extra[how])
            bad |= how in ('up', 'up within', 'absolute', 'hard out')
    format = draw(st.sampled_from(FORMATS))
    how, place = st.sampled_from(['cut', 'flip', 'flip in a header']), st.floats(0, 1)
    damage = st.tuples(how, place, st.sampled_from([1 << bit for bit in range(8)]))
    behind = st.tuples(st.just('behind'), st.just(0.0), st.sampled_from(['tar', 'noise']))
    changes = st.lists(st.one_of(damage, behind), max_size=1)
    when_packed = st.lists(damage, max_size=1) if draw(st.booleans()) else st.just([])
    made = Archive(
        members,
        format,
        draw(changes) if draw(st.booleans()) else [],
        draw(st.sampled_from(sorted(PACKINGS))),
        draw(when_packed),
        must_succeed=False,
        must_fail=bad,
    )
    sound = not made.changes and not made.changes_when_packed
    sound = sound and format != tarfile.USTAR_FORMAT  # which has not all names
    return made._replace(must_succeed=plain and sound)


@examples(60)
@given(archives())
def test_a_tar_is_held_whole_or_refused_in_one_line(archive):
    """Against what GNU tar extracts, all parts of it (`-i`) and the last of equal names."""
    with workplace() as root, tempfile.TemporaryDirectory() as unpacked:
        source = root / f'source{archive.suffix}'
        source.write_bytes(archive.data())
        tar = ['tar', '-x', '-i', '-f', str(source), '-C', unpacked]
        done = subprocess.run(tar, capture_output=True, check=False)
        must_fail = archive.must_fail or done.returncode != 0
        check(source, Path(unpacked), archive.must_succeed, must_fail)
