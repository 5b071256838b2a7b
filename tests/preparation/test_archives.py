"""The index of a tar against tarfile's own reading; what is refused."""

import io
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
    assert sum(read) < 20_000  # of 2 MB


@pytest.mark.parametrize(
    ('fields', 'words'),
    [
        ({'name': '/etc/passwd'}, 'leads out'),
        ({'name': 'a/../../b'}, 'leads out'),
        ({'type': tarfile.SYMTYPE, 'linkname': '/etc/passwd'}, 'plain file'),
        ({'type': tarfile.LNKTYPE, 'linkname': 'b/one.bin'}, 'plain file'),
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


def test_missing_and_changed(tmp_path):
    refused('No such file', tmp_path / 'none.tar')
    path = tmp_path / 'short'
    path.write_bytes(b'123')
    with pytest.raises(UserError, match='ends within x'):
        archives.read_entry(path, archives.Entry('x', 1, 3))
    with pytest.raises(UserError, match='No such file'):
        archives.read_entry(tmp_path / 'none', archives.Entry('x', 0, 1))
