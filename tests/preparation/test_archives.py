"""The index of a tar against tarfile's own reading; what is refused."""

import io
import random
import tarfile

import pytest

from alexnet_jax.preparation import archives
from alexnet_jax.runtime.errors import UserError
from tests.photographs import add, tar_bytes

FILES = [('b/one.bin', bytes(range(256)) * 9), ('empty', b''), ('x' * 150, b'abc'), ('two', b'2')]


def index(path, *arguments):
    return list(archives.tar_entries(path, *arguments))


def refused(words, path, *arguments):
    with pytest.raises(UserError, match=words) as caught:
        index(path, *arguments)
    assert '\n' not in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize('format', [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_and_their_bytes(tmp_path, format):
    path = tmp_path / 'a.tar'
    files = [f for f in FILES if format != tarfile.USTAR_FORMAT or len(f[0]) < 100]
    with tarfile.open(path, 'w', format=format) as tar:
        add(tar, './folder', b'', type=tarfile.DIRTYPE)
        for name, data in files:
            add(tar, f'./{name}', data)
    found = index(path)
    assert [(e.name, archives.read_entry(path, e)) for e in found] == files


def test_a_tar_in_a_tar(tmp_path):
    path = tmp_path / 'outer.tar'
    inner = [('first.tar', FILES), ('empty.tar', []), ('last.tar', FILES[::-1])]
    path.write_bytes(tar_bytes([(name, tar_bytes(files)) for name, files in inner]))
    entries = index(path)
    assert [e.name for e in entries] == [name for name, _ in inner]
    for entry, (_, files) in zip(entries, inner, strict=True):
        found = index(path, entry.offset, entry.size)
        assert [(e.name, archives.read_entry(path, e)) for e in found] == files


def test_only_headers_are_read(tmp_path, monkeypatch):
    path = tmp_path / 'a.tar'
    path.write_bytes(tar_bytes([(f'{i}', bytes(100_000)) for i in range(20)]))
    read, real = [], open

    class Counting(io.FileIO):
        def read(self, size=-1):
            data = super().read(size)
            read.append(len(data))
            return data

    monkeypatch.setattr('builtins.open', lambda p, *a, **k: Counting(p))
    assert len(index(path)) == 20
    monkeypatch.setattr('builtins.open', real)
    assert sum(read) < 25_000  # of 2 MB; 10 kB of zeros fill the last record


@pytest.mark.parametrize(
    ('fields', 'words'),
    [
        ({'name': '/etc/passwd'}, 'leads out'),
        ({'name': 'a/../../b'}, 'leads out'),
        ({'type': tarfile.SYMTYPE, 'linkname': '/etc/passwd'}, 'plain file'),
        ({'type': tarfile.LNKTYPE, 'linkname': 'b/one.bin'}, 'plain file'),
        ({'type': tarfile.LNKTYPE, 'linkname': '/etc/passwd'}, 'a hard link that leads out'),
        ({'type': tarfile.LNKTYPE, 'linkname': '../passwd'}, 'a hard link that leads out'),
        ({'type': tarfile.CHRTYPE}, 'plain file'),
        ({'type': tarfile.FIFOTYPE}, 'plain file'),
    ],
)
def test_members_that_are_refused(tmp_path, fields, words):
    path = tmp_path / 'a.tar'
    with tarfile.open(path, 'w') as tar:
        add(tar, 'b/one.bin', b'1')
        add(tar, **{'name': 'bad', 'data': b''} | fields)
    refused(words, path)


def test_a_member_that_reaches_beyond_the_inner_tar(tmp_path):
    path = tmp_path / 'outer.tar'
    long = tar_bytes([('long', bytes(5000))])[:1024]
    path.write_bytes(tar_bytes([('a.tar', long), ('b.tar', tar_bytes(FILES))]))
    entry = index(path)[0]
    refused('beyond the end', path, entry.offset, entry.size)


@pytest.mark.parametrize('keep', [0, 100, 512, 2000, 3000, 5000])
def test_cut_short(tmp_path, keep):
    path = tmp_path / 'a.tar'
    path.write_bytes(tar_bytes(FILES)[:keep])
    refused('copy or download it again', path)


@pytest.mark.parametrize('at', [0, 3072])  # the first header, the second
def test_a_damaged_header(tmp_path, at):
    path = tmp_path / 'a.tar'
    data = bytearray(tar_bytes(FILES))
    data[at : at + 20] = b'\xff' * 20
    path.write_bytes(data)
    refused('as a tar', path)


@pytest.mark.parametrize('more', [b'x', tar_bytes(FILES), bytes(1536) + b'x'])
def test_bytes_behind_the_end(tmp_path, more):
    path = tmp_path / 'a.tar'
    path.write_bytes(tar_bytes(FILES) + bytes(2 << 20))
    assert len(index(path)) == len(FILES)
    with open(path, 'ab') as file:
        file.write(more)
    at = path.read_bytes().index(more.lstrip(b'\0'), 2 << 20)
    refused(f'continues at byte {at}, behind the end', path)


def test_an_inner_tar_without_an_end(tmp_path):
    path = tmp_path / 'outer.tar'
    path.write_bytes(tar_bytes([('a.tar', tar_bytes(FILES)[:3584]), ('b.tar', tar_bytes(FILES))]))
    entry = index(path)[0]
    refused('truncated', path, entry.offset, entry.size)


def test_a_negative_size(tmp_path):
    """The header says that the next one is itself, which tarfile reads for ever."""
    path = tmp_path / 'a.tar'
    header = bytearray(tar_bytes([('a', b'')])[:512])
    header[124:136] = (-512).to_bytes(12, 'big', signed=True)
    header[148:156] = b' ' * 8
    header[148:156] = f'{sum(header):06o}\0 '.encode()
    path.write_bytes(header + bytes(1024))
    refused('as a tar', path)


def test_a_damaged_tar_is_read_or_refused_in_one_line(tmp_path):
    path, whole = tmp_path / 'a.tar', tar_bytes(FILES)
    rng, errors = random.Random(0), []
    for _ in range(500):
        data = bytearray(whole)
        for _ in range(rng.choice([1, 1, 5])):
            data[rng.randrange(8192)] ^= 1 << rng.randrange(8)
        path.write_bytes(data[: rng.choice([len(data)] * 3 + [rng.randrange(len(data))])])
        try:
            archives.contents(path, archives.tar_members(path))
        except UserError as error:
            errors.append(str(error))
    assert len(errors) > 100
    assert not any('\n' in error for error in errors)


def test_a_link_that_goes_through_other_links(tmp_path):
    members = [
        archives.Member('data/x.png', archives.Entry('data/x.png', 0, 1)),
        archives.Member('one', archives.Link('data/../two', hard=False)),
        archives.Member('two', archives.Link('./data//', hard=False)),
        archives.Member('a/b/c.png', archives.Link('../../one/x.png', hard=False)),
        archives.Member('a/wrong.png', archives.Link('../none/../data/x.png', hard=False)),
        archives.Member('a/out.png', archives.Link('../../data/x.png', hard=False)),
        archives.Member('a/hard.png', archives.Link('data/x.png', hard=True)),
        archives.Member('a/early.png', archives.Link('a/late.png', hard=True)),
        archives.Member('a/late.png', archives.Entry('a/late.png', 5, 1)),
        archives.Member('a/over.png', archives.Link('/data/x.png', hard=False)),
    ]
    found = archives.contents('a.tar', members)
    assert found.links == {'one': True, 'two': True, 'a/out.png': False, 'a/over.png': False}
    read = {name: entry for name, entry in found.files.items() if 'x.png' not in name}
    assert read == {
        'a/b/c.png': archives.Entry('a/b/c.png', 0, 1),
        'a/wrong.png': archives.Lost('a/wrong.png', '../none/../data/x.png'),
        'a/hard.png': archives.Entry('a/hard.png', 0, 1),
        'a/early.png': archives.Lost('a/early.png', 'a/late.png'),
        'a/late.png': archives.Entry('a/late.png', 5, 1),
    }


def test_missing_and_changed(tmp_path):
    refused('No such file', tmp_path / 'none.tar')
    path = tmp_path / 'short'
    path.write_bytes(b'123')
    with pytest.raises(UserError, match='ends within x'):
        archives.read_entry(path, archives.Entry('x', 1, 3))
    with pytest.raises(UserError, match='No such file'):
        archives.read_entry(tmp_path / 'none', archives.Entry('x', 0, 1))
