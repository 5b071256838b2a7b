"""The index of a zip against zipfile's own reading and the program `zip`; what is refused."""

import io
import random
import stat
import subprocess
import zipfile

import pytest

from alexnet_jax.preparation import archives, zips
from alexnet_jax.preparation.images import MAX_BYTES, Unreadable
from alexnet_jax.runtime.errors import UserError

FILES = [('b/one.bin', bytes(range(256)) * 9), ('empty', b''), ('x' * 150, b'abc'), ('ü/2', b'2')]


def zip_bytes(files, compression=zipfile.ZIP_DEFLATED, **fields):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w') as archive:
        for name, data in files:
            info = zipfile.ZipInfo(name)
            info.compress_type = compression
            for field, value in fields.items():
                setattr(info, field, value)
            archive.writestr(info, data)
    return buffer.getvalue()


def contents(path):
    """Return name -> bytes."""
    files = archives.contents(path, zips.zip_members(path)).files
    return {name: archives.read_entry(path, entry) for name, entry in files.items()}


def refused(words, path):
    with pytest.raises(UserError, match=words) as caught:
        list(zips.zip_members(path))
    assert '\n' not in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize('compression', [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_members_and_their_bytes(tmp_path, compression):
    path = tmp_path / 'a.zip'
    path.write_bytes(zip_bytes([('./folder/', b''), *FILES], compression))
    members = list(zips.zip_members(path))
    assert [member.name for member in members] == ['folder', *(name for name, _ in FILES)]
    assert members[0].content is None
    assert [archives.read_entry(path, m.content) for m in members[1:]] == [d for _, d in FILES]


def test_what_the_program_zip_makes(tmp_path):
    folder = tmp_path / 'folder'
    for name, data in FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    (folder / 'none').mkdir()
    (folder / 'b/link').symlink_to('../empty')
    (folder / 'b/up').symlink_to('../b/link')
    (folder / 'out').symlink_to('/etc/passwd')
    path = tmp_path / 'a.zip'
    subprocess.run(['zip', '-qry', path, '.'], cwd=folder, check=True)
    assert contents(path) == {**dict(FILES), 'b/link': b'', 'b/up': b''}
    found = archives.contents(path, zips.zip_members(path))
    assert found.folders == {'', 'b', 'none', 'ü'}
    assert found.links == {'out': False}
    # To a pipe, with sizes and checksums behind the data.
    command = ['zip', '-qr', '-', '.', '-i', 'b/one.bin', 'empty']
    streamed = subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE).stdout
    path.write_bytes(streamed)
    assert contents(path) == dict(FILES[:2])


def test_of_equal_names_the_last_counts(tmp_path):
    path = tmp_path / 'a.zip'
    with pytest.warns(UserWarning, match='Duplicate name'):
        path.write_bytes(zip_bytes([('a/x', b'1'), ('y', b'2'), ('a/x', b'3'), ('./a//x', b'4')]))
    assert contents(path) == {'y': b'2', 'a/x': b'4'}
    found = archives.contents(path, zips.zip_members(path))
    assert found.replaced == ['a/x', 'a/x']
    subprocess.run(['unzip', '-qo', path], cwd=tmp_path, check=True)
    assert (tmp_path / 'a/x').read_bytes() == b'4'


@pytest.mark.parametrize(
    ('system', 'stored', 'name'),
    [
        (0, b'\x8erger.png', 'Ärger.png'),  # code page 437, by DOS
        (0, b'a\\b.png', 'a/b.png'),
        (3, b'a\\b.png', 'a\\b.png'),
        (3, b'\x8erger.png', 'Ärger.png'),
        (3, 'Ärger.png'.encode(), 'Ärger.png'),  # UTF-8 without the flag, by many Unix programs
    ],
)
def test_names_in_other_encodings(tmp_path, system, stored, name):
    path = tmp_path / 'a.zip'
    place = b'n' * len(stored)
    data = zip_bytes([(place.decode(), b'1')], create_system=system)
    path.write_bytes(data.replace(place, stored))
    assert contents(path) == {name: b'1'}


def test_the_records_of_zip64(tmp_path, monkeypatch):
    monkeypatch.setattr(zipfile, 'ZIP_FILECOUNT_LIMIT', 2)
    path = tmp_path / 'a.zip'
    path.write_bytes(zip_bytes(FILES))
    assert b'PK\x06\x06' in path.read_bytes()
    assert contents(path) == dict(FILES)


def link(target):
    return zip_bytes([('a', target)], create_system=3, external_attr=(stat.S_IFLNK | 0o777) << 16)


@pytest.mark.parametrize(
    ('data', 'words'),
    [
        (zip_bytes([('/etc/passwd', b'')]), 'leads out'),
        (zip_bytes([('a/../../b', b'')]), 'leads out'),
        (zip_bytes([('..\\b', b'')], create_system=0), 'leads out'),
        (zip_bytes([('a', b'')], external_attr=stat.S_IFIFO << 16), 'plain file'),
        (zip_bytes(FILES, zipfile.ZIP_BZIP2), 'compressed by method 12'),
        (link(b'x' * 5000), 'link that is broken'),
        (zip_bytes(FILES) * 2, 'in front of its first member'),
        (b'MZ' + zip_bytes(FILES), 'in front of its first member'),
        (zip_bytes(FILES) + b'x', 'behind its end'),
        (zip_bytes(FILES)[:-30], 'as a zip'),
        (b'', 'as a zip'),
    ],
)
def test_zips_that_are_refused(tmp_path, data, words):
    path = tmp_path / 'a.zip'
    path.write_bytes(data)
    refused(words, path)


def test_an_encrypted_member(tmp_path):
    (tmp_path / 'x').write_bytes(b'secret')
    subprocess.run(['zip', '-q', '-P', 'word', 'a.zip', 'x'], cwd=tmp_path, check=True)
    refused('is encrypted', tmp_path / 'a.zip')


def test_a_bomb_is_not_unpacked(tmp_path):
    path = tmp_path / 'a.zip'
    path.write_bytes(zip_bytes([('a', bytes(MAX_BYTES + 1))]))
    (member,) = zips.zip_members(path)
    with pytest.raises(Unreadable) as caught:
        member.content.read(path)
    assert caught.value.kind == 'too large'
    # A member that says it is small is unpacked no further than that.
    with pytest.raises(Unreadable, match='checksum'):
        member.content._replace(size=1_000_000).read(path)


@pytest.mark.parametrize('compression', [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_damaged_zip_gives_the_right_bytes_or_an_error(tmp_path, compression):
    path, whole = tmp_path / 'a.zip', zip_bytes(FILES, compression)
    rng, right, errors = random.Random(0), dict(FILES), 0
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(rng.choice([1, 1, 5])):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data[: rng.choice([len(data)] * 3 + [rng.randrange(len(data))])])
        try:
            found = contents(path)
        except (UserError, Unreadable):
            errors += 1
            continue
        for name, content in found.items():  # a damaged name is not noticed
            assert content in right.values(), name
    assert errors > 100
