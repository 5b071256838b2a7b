"""Decoding: formats, odd and damaged files, limits; the resize against slow NumPy."""

import collections
import gzip
import io
import json
import struct
import warnings
import zlib

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image, ImageOps, PngImagePlugin, WebPImagePlugin

from alexnet_jax import prepare
from alexnet_jax.preparation import images
from alexnet_jax.runtime.errors import UserError
from tests import photographs

FORMATS = ('JPEG', 'PNG', 'WEBP', 'BMP', 'GIF', 'TIFF')


@pytest.fixture(scope='module')
def jpeg():
    """Return a photograph-like JPEG of 300 x 200: smooth, with noise."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    image = np.asarray(Image.fromarray(coarse).resize((300, 200), Image.Resampling.BICUBIC))
    noisy = np.clip(image + rng.normal(0, 5, image.shape), 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noisy).save(buffer, 'JPEG', quality=90)
    return buffer.getvalue()


def pixels(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert('RGB'))


@pytest.mark.parametrize(
    ('format', 'mode', 'name', 'kinds'),
    [
        ('JPEG', 'RGB', 'a.JPEG', []),
        ('JPEG', 'RGB', 'a', []),
        ('PNG', 'RGB', 'a.png', []),
        ('PNG', 'RGB', 'n02105855_2933.JPEG', ['PNG named JPEG']),
        ('JPEG', 'RGB', 'a.png', ['JPEG named PNG']),
        ('JPEG', 'CMYK', 'a.jpg', ['CMYK']),
        ('JPEG', 'L', 'a.jpg', ['grayscale']),
        ('PNG', 'L', 'a.jpg', ['PNG named JPEG', 'grayscale']),
        ('PNG', '1', 'a.png', ['grayscale']),
        ('PNG', 'P', 'a.png', ['palette']),
        ('PNG', 'RGBA', 'a.png', ['transparency']),
        ('PNG', 'LA', 'a.png', ['transparency']),
    ],
)
def test_formats_and_modes(jpeg, format, mode, name, kinds):
    data = photographs.encoded(jpeg, format, mode)
    image, odd = images.decode(data, name)
    assert (image.mode, odd) == ('RGB', kinds)
    np.testing.assert_array_equal(np.asarray(image), pixels(data), strict=True)


def test_a_palette_with_transparency_warns_of_nothing(jpeg):
    data = photographs.encoded(jpeg, 'PNG', 'P', transparency=bytes(range(256)))
    image, odd = images.decode(data)
    assert odd == ['palette']
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        np.testing.assert_array_equal(np.asarray(image), pixels(data))


# Orientation: what is to be done to the stored pixels, in NumPy's words, as the EXIF standard says.
UPRIGHT = {
    1: lambda x: x,
    2: np.fliplr,
    3: lambda x: np.rot90(x, 2),
    4: np.flipud,
    5: lambda x: np.swapaxes(x, 0, 1),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: np.rot90(np.swapaxes(x, 0, 1), 2),
    8: np.rot90,
}


@pytest.mark.parametrize('orientation', UPRIGHT)
@pytest.mark.parametrize(
    ('format', 'options'),
    [('JPEG', {}), ('PNG', {}), ('WEBP', {'lossless': True}), ('TIFF', {}), ('MPO', {})],
)
def test_the_exif_orientation(jpeg, format, options, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    plain = pixels(photographs.encoded(jpeg, format, **options))
    data = photographs.encoded(jpeg, format, exif=exif, **options)
    image, odd = images.decode(data, formats=FORMATS, turn=True)
    np.testing.assert_array_equal(np.asarray(image), UPRIGHT[orientation](plain), strict=True)
    assert odd == ['turned by EXIF orientation'] * (orientation > 1)
    by_pillow = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(np.asarray(image), np.asarray(by_pillow), strict=True)
    if format != 'TIFF':
        image, odd = images.decode(data, formats=FORMATS)
        np.testing.assert_array_equal(np.asarray(image), plain, strict=True)
        assert odd == ['with EXIF orientation ignored'] * (orientation > 1)


@pytest.mark.parametrize('orientation', [0, 9, 65535])
def test_an_orientation_that_does_not_exist_turns_nothing(jpeg, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image, odd = images.decode(photographs.encoded(jpeg, 'JPEG', exif=exif), turn=True)
    assert (image.size, odd) == ((300, 200), [])


NOISE = np.random.default_rng(3).integers(0, 256, (24, 40, 3), dtype=np.uint8)


def stored(format, image=NOISE, mode='RGB', *, animated=False, **options):
    """Return an image as a file; an animated one has its negative as a second frame."""
    buffer = io.BytesIO()
    if animated:
        options |= {'save_all': True, 'append_images': [Image.fromarray(255 - image)]}
    Image.fromarray(image).convert(mode).save(buffer, format, **options)
    return buffer.getvalue()


PNG, JPEG = stored('PNG'), stored('JPEG', quality=95)
SEVERAL, REDUCED = 'of several frames (the first is used)', 'reduced from 16 bits'


def chunk(kind, data, checksum=None):
    checksum = zlib.crc32(kind + data) if checksum is None else checksum
    return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', checksum)


def png(depth, colour, samples, *chunks):
    """Return a PNG of one row, whose samples are packed already."""
    width = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour] * depth
    header = struct.pack('>IIBBBBB', len(samples) * 8 // width, 1, depth, colour, 0, 0, 0)
    rows = chunk(b'IDAT', zlib.compress(b'\0' + samples))
    return PNG[:8] + b''.join([chunk(b'IHDR', header), *chunks, rows, chunk(b'IEND', b'')])


def png_with(*chunks, at=33):
    """Return the noise as a PNG, with chunks after its header."""
    return PNG[:at] + b''.join(chunks) + PNG[at:]


def jpeg_with(marker, data, length=None):
    """Return the noise as a JPEG, with a segment at its beginning."""
    length = len(data) + 2 if length is None else length
    return JPEG[:2] + struct.pack('>HH', marker, length) + data + JPEG[2:]


def compressed(size):
    return zlib.compress(bytes(size))


def tiff(width, height, compression, tags, body=bytes(2000)):
    """Return an RGB TIFF whose pixels are at byte 8,000; `tags` are those of strips or tiles."""
    entries = {256: (width,), 257: (height,), 258: (8, 8, 8), 259: (compression,), 262: (2,)}
    entries |= {277: (3,)} | tags
    directory, beyond = struct.pack('<H', len(entries)), b''
    for tag, values in sorted(entries.items()):
        content = struct.pack(f'<{len(values)}I', *values)
        if len(values) > 1:
            beyond += content
            content = struct.pack('<I', 8 + 2 + 12 * len(entries) + 4 + len(beyond) - len(content))
        directory += struct.pack('<HHI', tag, 4, len(values)) + content
    return (b'II*\0\x08\0\0\0' + directory + bytes(4) + beyond).ljust(8000, b'\0') + body


STRIPS = {273: (8000,), 279: (100,), 278: (2,)}
PALETTE_TAGS = {262: (3,), 258: (8, 8), 277: (2,), 338: (2,)}
PALETTE_TAGS[320] = tuple(256 * ((i + first) % 256) for first in (0, 100, 200) for i in range(256))
PALETTE = chunk(b'PLTE', bytes([250, 0, 0, 0, 250, 0, 0, 0, 250, 9, 9, 9]))
COLOURS = [[[250, 0, 0], [0, 250, 0], [0, 0, 250], [9, 9, 9]]]
GRAYS = {
    1: [[[value] * 3 for value in (0, 255, 0, 255, 255, 255, 0, 0)]],
    2: [[[value] * 3 for value in (0, 85, 170, 255)]],
    4: [[[value] * 3 for value in (0, 17, 238, 255)]],
}
NOT_WHOLE = 'header is damaged, or of a kind that is not read'

# What each file gives: the notes with which it is read, and its pixels, or the words with which it
# is refused. None stands for the noise.
CASES = {
    # Metadata that Pillow does not read.
    'PNG, profile of 2 MB': (png_with(chunk(b'iCCP', b'x\0\0' + compressed(2 << 20))), [], None),
    'PNG, profile unknown': (png_with(chunk(b'iCCP', b'x\0\7' + compressed(9))), [], None),
    'PNG, profile empty': (png_with(chunk(b'iCCP', b'')), [], None),
    'PNG, zTXt of 2 MB': (png_with(chunk(b'zTXt', b'x\0\0' + compressed(2 << 20))), [], None),
    'PNG, iTXt of 2 MB': (
        png_with(chunk(b'iTXt', b'x\0\1\0\0\0' + compressed(2 << 20))),
        [],
        None,
    ),
    'PNG, text after the pixels': (
        png_with(chunk(b'zTXt', b'x\0\0' + compressed(2 << 20)), at=-12),
        [],
        None,
    ),
    'PNG, 65 MB of text': (
        png_with(*[chunk(b'zTXt', b'k\0\0' + compressed(1 << 20))] * 65),
        [],
        None,
    ),
    'PNG, text of a wrong checksum': (png_with(chunk(b'tEXt', b'a\0b', 1)), [], None),
    'PNG, gamma too short': (png_with(chunk(b'gAMA', b'\0')), [], None),
    'PNG, transparency too short': (png_with(chunk(b'tRNS', b'\0')), [], None),
    'PNG, private chunk': (png_with(chunk(b'vpAg', b'\0')), [], None),
    'PNG, EXIF damaged': (png_with(chunk(b'eXIf', b'MM\0*damaged')), [], None),
    'PNG, animation damaged': (png_with(chunk(b'acTL', b'\0')), [], None),
    'PNG, frame in part of it': (
        png_with(chunk(b'fcTL', struct.pack('>5IHHBB', 0, 10, 9, 0, 0, 1, 1, 0, 0))),
        [],
        None,
    ),
    'JPEG, profile damaged': (jpeg_with(0xFFE2, b'ICC_PROFILE\0'), [], None),
    'JPEG, JFIF too short': (jpeg_with(0xFFE0, b'JFIF\0'), [], None),
    'JPEG, Adobe too short': (jpeg_with(0xFFEE, b'Adobe'), [], None),
    'JPEG, Photoshop damaged': (jpeg_with(0xFFED, b'Photoshop 3.0\x008BIM\x03\xed'), [], None),
    'JPEG, EXIF damaged': (jpeg_with(0xFFE1, b'Exif\0\0damaged'), [], None),
    'JPEG, EXIF cut': (jpeg_with(0xFFE1, b'Exif\0\0MM\0*\0\0\0\x08\0\5\1\x12'), [], None),
    'JPEG, XMP damaged': (jpeg_with(0xFFE1, b'http://ns.adobe.com/xap/1.0/\0\xff'), [], None),
    'JPEG, MPF damaged': (jpeg_with(0xFFE2, b'MPF\0damaged'), [], None),
    'JPEG, comment of 60 kB': (jpeg_with(0xFFFE, bytes(60_000)), [], None),
    'JPEG, segment beyond the end': (jpeg_with(0xFFE5, b'', 65_535), 'Truncated', None),
    # What follows the image.
    'PNG, more behind it': (PNG + b'more' * 99, [], None),
    'PNG, animated': (stored('PNG', animated=True), [SEVERAL], None),
    'JPEG, a film behind it': (JPEG + b'\0\0\0\x18ftypmp42' * 99, [], None),
    'JPEG, another behind it': (JPEG + JPEG, [], None),
    'MPO': (stored('MPO', quality=95, animated=True), [SEVERAL], None),
    # Damage of the pixels.
    'PNG, checksum of the pixels': (png_with(at=-16)[:-16] + bytes(4) + PNG[-12:], 'IDAT', None),
    'PNG, checksum of the header': (PNG[:29] + bytes(4) + PNG[33:], NOT_WHOLE, None),
    'PNG, palette missing': (png(2, 3, b'\x1b'), 'palette is missing', None),
    'PNG, chunk without a name': (png_with(chunk(b'a\xffaa', b'')), NOT_WHOLE, None),
    'empty': (b'', 'empty', None),
    # Depths and modes.
    'PNG, 1 bit': (png(1, 0, b'\x5c'), ['grayscale'], GRAYS[1]),
    'PNG, 2 bits': (png(2, 0, b'\x1b'), ['grayscale'], GRAYS[2]),
    'PNG, 4 bits': (png(4, 0, b'\x01\xef'), ['grayscale'], GRAYS[4]),
    'PNG, palette of 2 bits': (png(2, 3, b'\x1b', PALETTE), ['palette'], COLOURS),
    'PNG, palette of 8 bits': (png(8, 3, b'\0\1\2\3', PALETTE), ['palette'], COLOURS),
    'PNG, palette, transparent': (
        png(2, 3, b'\x1b', PALETTE, chunk(b'tRNS', b'\0\x80')),
        ['palette'],
        COLOURS,
    ),
    'PNG, one colour transparent': (png_with(chunk(b'tRNS', bytes(6))), [], None),
    'PNG, gray of 16 bits': (png(16, 0, b'\1\2'), 'mode I;16, not 8 bits', None),
    'PNG, gray and alpha of 16 bits': (
        png(16, 4, b'\7\xff\0\0'),
        ['transparency', REDUCED],
        [[[7, 7, 7]]],
    ),
    'PNG, RGB of 16 bits': (png(16, 2, b'\1\xff\2\0\xfe\xff'), [REDUCED], [[[1, 2, 254]]]),
    'PNG, RGBA of 16 bits': (
        png(16, 6, b'\1\xff\2\0\xfe\xff\0\0'),
        ['transparency', REDUCED],
        [[[1, 2, 254]]],
    ),
    'JPEG, progressive': (stored('JPEG', quality=95, progressive=True), [], None),
    'JPEG of 12 bits': (JPEG.replace(b'\0\x11\x08\0', b'\0\x11\x0c\0'), NOT_WHOLE, None),
    # Other formats.
    'HEIC': (b'\0\0\0\x18ftypheic' + bytes(99), 'HEIC, AVIF or a video, neither JPEG nor', None),
    'WebP': (stored('WEBP', lossless=True), [], None),
    'WebP with alpha': (stored('WEBP', mode='RGBA', lossless=True), [], None),
    'WebP, animated': (stored('WEBP', lossless=True, animated=True), [SEVERAL], None),
    'BMP': (stored('BMP'), [], None),
    'BMP of 8 bits': (stored('BMP', mode='L'), ['grayscale'], 'gray'),
    'GIF, gray': (stored('GIF', mode='L'), ['palette'], 'gray'),
    'TIFF': (stored('TIFF'), [], None),
    'TIFF, pages': (stored('TIFF', animated=True), [SEVERAL], None),
    'TIFF, LZW': (stored('TIFF', compression='tiff_lzw'), [], None),
    'TIFF, gray': (stored('TIFF', mode='L'), ['grayscale'], 'gray'),
    'TIFF, gray and alpha': (stored('TIFF', mode='LA'), ['transparency'], 'gray'),
    'TIFF, palette and alpha': (
        tiff(2, 2, 1, {**STRIPS, **PALETTE_TAGS}, bytes([1, 255, 2, 0, 0, 9, 1, 0])),
        ['transparency'],
        [[[1, 101, 201], [2, 102, 202]], [[0, 100, 200], [1, 101, 201]]],
    ),
    'TIFF, CMYK': (stored('TIFF', mode='CMYK'), ['CMYK'], None),
    'TIFF, Lab': (stored('TIFF', mode='LAB'), 'mode LAB, not 8 bits', None),
    'TIFF, floats': (stored('TIFF', mode='F'), 'mode F, not 8 bits', None),
    'TIFF, gray of 16 bits': (stored('TIFF', mode='I;16'), 'mode I;16, not 8 bits', None),
}


@pytest.mark.parametrize('case', CASES)
def test_what_each_file_gives(case, capfd):
    data, expected, found = CASES[case]
    if isinstance(expected, str):
        with pytest.raises(images.Unreadable, match=expected) as caught:
            images.decode(data, formats=FORMATS, turn=True)
        assert caught.value.kind == 'broken'
    else:
        image, odd = images.decode(data, formats=FORMATS, turn=True)
        assert (image.mode, odd) == ('RGB', expected)
        if found == 'gray':
            found = np.asarray(Image.fromarray(NOISE).convert('L').convert('RGB'))
        elif found is None:
            found = pixels(JPEG) if data[:2] == JPEG[:2] else NOISE
        np.testing.assert_array_equal(np.asarray(image), found)
    assert capfd.readouterr() == ('', '')


def test_the_metadata_is_why_they_were_refused():
    """Pillow itself refuses them, and its limits stay as they are."""
    for case in ('PNG, profile of 2 MB', 'PNG, zTXt of 2 MB', 'PNG, 65 MB of text'):
        with pytest.raises(ValueError, match=r'Decompressed data too large|Too much memory'):
            Image.open(io.BytesIO(CASES[case][0])).load()
    assert PngImagePlugin.MAX_TEXT_CHUNK == 1 << 20


@pytest.mark.parametrize('format', ['JPEG', 'PNG'])
def test_damaged_metadata_does_not_hide_the_orientation(format):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = stored(format, exif=exif)
    if format == 'PNG':
        data = data[:33] + chunk(b'iCCP', b'') + data[33:]
    else:
        data = data[:2] + b'\xff\xe2\0\x0eICC_PROFILE\0' + data[2:]
    image, odd = images.decode(data, turn=True)
    assert (image.size, odd) == ((24, 40), ['turned by EXIF orientation'])


def test_no_flipped_bit_of_a_png_changes_the_pixels_in_silence():
    data = stored('PNG', NOISE[:4, :5])
    refused = 0
    for position in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[position // 8] ^= 1 << position % 8
        try:
            image, _ = images.decode(bytes(flipped))
        except images.Unreadable:
            refused += 1
        else:
            np.testing.assert_array_equal(np.asarray(image), NOISE[:4, :5])
    assert refused > len(data) * 4


@pytest.mark.parametrize('format', FORMATS)
def test_damaged_files_are_read_or_refused(format, capfd):
    """Bits are flipped and the end is cut off, mostly in the header; no other error is raised."""
    rng = np.random.default_rng(FORMATS.index(format))
    files = [stored(format), stored(format, mode='L')]
    if format not in ('JPEG', 'BMP'):
        files.append(stored(format, animated=True))
    if format == 'TIFF':
        files += [stored(format, compression=kind) for kind in ('tiff_lzw', 'tiff_deflate', 'jpeg')]
    refused = []
    for data in files:
        for _ in range(50):
            damaged = bytearray(data[: rng.choice([len(data), rng.integers(len(data))])])
            for at in rng.integers(0, min(len(damaged), 200) or 1, rng.integers(1, 4)):
                if at < len(damaged):
                    damaged[at] ^= 1 << rng.integers(8)
            try:
                image, _ = images.decode(bytes(damaged), formats=FORMATS, max_pixels=10**6)
                assert image.mode == 'RGB'
            except images.Unreadable as error:
                refused.append(str(error))
    assert refused
    assert all(reason and '\n' not in reason for reason in refused)
    assert capfd.readouterr() == ('', '')


@pytest.mark.parametrize('height', [2, -2])  # negative: the first row is the top one
def test_a_bmp_written_by_hand(height):
    rows = np.array([[[1, 2, 3], [4, 5, 6], [7, 8, 9]], [[10, 20, 30], [40, 50, 60], [70, 80, 90]]])
    lines = [row[:, ::-1].astype(np.uint8).tobytes() + bytes(3) for row in rows]  # BGR, padded
    body = b''.join(lines if height < 0 else lines[::-1])
    info = struct.pack('<IiiHHIIiiII', 40, 3, height, 1, 24, 0, len(body), 0, 0, 0, 0)
    data = struct.pack('<2sIHHI', b'BM', 54 + len(body), 0, 0, 54) + info + body
    image, odd = images.decode(data, formats=FORMATS)
    assert odd == []
    np.testing.assert_array_equal(np.asarray(image), rows)


def test_a_tiff_written_by_hand():
    strips = {273: (8000, 8006), 278: (1,), 279: (6, 6)}
    data = tiff(2, 2, 1, strips, bytes(range(12)))
    image, odd = images.decode(data, formats=FORMATS)
    assert odd == []
    np.testing.assert_array_equal(np.asarray(image), np.arange(12).reshape(2, 2, 3))


def test_the_first_frame_of_a_gif():
    """The second frame is damaged, and the first has a transparent colour."""
    image = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4), 'P')
    colours = np.arange(48, dtype=np.uint8)[::-1]
    image.putpalette(colours.tobytes())
    buffer = io.BytesIO()
    image.save(buffer, 'GIF', save_all=True, append_images=[image.rotate(180)], transparency=3)
    for data in (buffer.getvalue(), buffer.getvalue()[:-9]):
        found, odd = images.decode(data, formats=FORMATS)
        assert odd == ['palette', SEVERAL]
        np.testing.assert_array_equal(
            np.asarray(found).reshape(12, 3), colours.reshape(16, 3)[:12], strict=True
        )


LARGE = {
    'GIF': struct.pack('<6sHHBBB', b'GIF89a', 12_000, 12_000, 0, 0, 0)
    + struct.pack('<BHHHHBB', 0x2C, 0, 0, 1, 1, 0, 2)
    + b'\2\x44\1\0;',
    'GIF, frame beyond the canvas': struct.pack('<6sHHBBB', b'GIF89a', 1, 1, 0, 0, 0)
    + struct.pack('<BHHHHBB', 0x2C, 0, 0, 12_000, 12_000, 0, 2)
    + b'\2\x44\1\0;',
    'BMP': struct.pack('<2sIHHI', b'BM', 54, 0, 0, 54)
    + struct.pack('<IiiHHIIiiII', 40, 12_000, -12_000, 1, 24, 0, 0, 0, 0, 0, 0),
    'BMP, lowest height': struct.pack('<2sIHHI', b'BM', 54, 0, 0, 54)
    + struct.pack('<IiiHHIIiiII', 40, 1, -(2**31), 1, 24, 0, 0, 0, 0, 0, 0),
    'WebP': b'RIFF\x1e\0\0\0WEBPVP8X\x0a\0\0\0\x02\0\0\0' + b'\xfe\x3f\0' * 2 + bytes(8),
    'TIFF': tiff(12_000, 12_000, 5, STRIPS),
    'TIFF, one tile': tiff(9, 9, 5, {322: (60_000,), 323: (60_000,), 324: (8000,), 325: (9,)}),
    'TIFF, strips': tiff(9, 9, 1, {273: (8000,) * 100_001, 279: (1,) * 100_001, 278: (1,)}),
}


@pytest.mark.parametrize('case', LARGE)
def test_too_large_in_other_formats(case):
    """None of them has more than a few bytes of pixels."""
    with pytest.raises(images.Unreadable) as caught:
        images.decode(LARGE[case], formats=FORMATS)
    assert caught.value.kind == 'too large', caught.value


def test_a_pillow_without_webp(monkeypatch):
    monkeypatch.setattr(WebPImagePlugin, 'SUPPORTED', False)
    with pytest.raises(UserError, match='built without WEBP; install') as caught:
        images.decode(stored('WEBP'), formats=FORMATS)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('cut', [0, 1, 10, 100, 1000, -2000, -300])
@pytest.mark.parametrize('format', ['JPEG', 'PNG'])
def test_truncated(jpeg, format, cut):
    with pytest.raises(images.Unreadable) as caught:
        images.decode(photographs.encoded(jpeg, format)[:cut])
    assert caught.value.kind == 'broken'
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('format', ['GIF', 'BMP', 'TIFF', 'WEBP'])
def test_other_formats(jpeg, format):
    with pytest.raises(images.Unreadable, match='neither JPEG nor PNG'):
        images.decode(photographs.encoded(jpeg, format))


def test_sixteen_bits_are_not_clipped_in_silence():
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(buffer, 'PNG')
    with pytest.raises(images.Unreadable, match='8 bits') as caught:
        images.decode(buffer.getvalue())
    assert caught.value.kind == 'broken'


def test_too_large(jpeg):
    for data, limits in [
        (photographs.huge(), {}),  # decoding it would need 4.8 GB
        (jpeg, {'max_pixels': 300 * 200 - 1}),
        (jpeg, {'max_bytes': len(jpeg) - 1}),
    ]:
        with pytest.raises(images.Unreadable) as caught:
            images.decode(data, **limits)
        assert caught.value.kind == 'too large'
    images.decode(jpeg, max_pixels=300 * 200, max_bytes=len(jpeg))


def test_a_strip_does_not_grow_beyond_what_is_opened():
    """1 x 40,000 pixels would become 256 x 10,240,000: 7.9 GB."""
    with pytest.raises(images.Unreadable, match='1x40000 pixels become 256x10240000') as caught:
        images.resize_and_crop(Image.new('RGB', (1, 40_000)), 256)
    assert caught.value.kind == 'too large'


def test_a_file_within_gzip(jpeg):
    image, odd = images.decode(gzip.compress(jpeg), 'n02487347_1956.JPEG')
    assert odd == ['gzip']
    np.testing.assert_array_equal(np.asarray(image), pixels(jpeg), strict=True)
    with pytest.raises(images.Unreadable, match='gzip') as caught:
        images.decode(gzip.compress(jpeg)[:-100])
    assert caught.value.kind == 'broken'
    bomb = gzip.compress(bytes(10_000_000))
    with pytest.raises(images.Unreadable, match='1000001 bytes') as caught:
        images.decode(bomb, max_bytes=1_000_000)
    assert caught.value.kind == 'too large'


def triangle(length, target):
    """Return the matrix of an antialiased linear resize, from the triangle filter's formula."""
    scale = length / target
    support = max(scale, 1.0)
    weights = np.zeros((target, length))
    for i in range(target):
        centre = (i + 0.5) * scale
        weights[i] = np.maximum(0, 1 - np.abs((np.arange(length) + 0.5 - centre) / support))
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize('shape', [(37, 61), (61, 37), (90, 40), (40, 40), (20, 31), (32, 50)])
def test_resize_and_crop_is_the_triangle_filter(shape):
    rng, size = np.random.default_rng(1), 32
    image = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
    found = images.resize_and_crop(Image.fromarray(image), size)
    assert (found.shape, found.dtype) == ((32, 32, 3), np.uint8)
    height, width = (round(side * size / min(shape)) for side in shape)
    down = np.einsum('yh,hwc->ywc', triangle(shape[0], height), image.astype(np.float64))
    whole = np.einsum('xw,ywc->yxc', triangle(shape[1], width), down)
    top, left = (height - size) // 2, (width - size) // 2
    # Pillow rounds after each of the two passes.
    assert np.abs(found - whole[top : top + size, left : left + size]).max() < 1.02


def check_photographs(sample):
    """Hold each photograph against Pillow alone; return how many were odd in which way."""
    found = collections.Counter()
    for _, data in sample:
        image, odd = images.decode(data, 'a.JPEG')
        found.update(odd)
        np.testing.assert_array_equal(
            images.resize_and_crop(image), photographs.expected(data), strict=True
        )
    return found


def test_photographs_as_pillow_resizes_them():
    sample = photographs.sample(24)
    assert check_photographs(sample) == {'grayscale': 3, 'with EXIF orientation ignored': 3}
    # The sample has what it promises: each kind of file that the decoder has to deal with.
    files = [Image.open(io.BytesIO(data)) for _, data in sample]
    assert {file.mode for file in files} == {'RGB', 'L'}
    assert {file.layer[0][1:3] for file in files} == {(1, 1), (2, 1), (2, 2)}  # chroma
    assert {'progressive', 'icc_profile', 'photoshop', 'exif', 'comment'} <= {
        key for file in files for key in file.info
    }
    assert min(min(file.size) for file in files) < 100
    assert max(min(file.size) for file in files) > 500
    assert any(file.width > file.height for file in files)
    assert any(file.width < file.height for file in files)


@pytest.mark.photographs
def test_imagenets_photographs_as_pillow_resizes_them():
    assert check_photographs(photographs.imagenet_sample()) == {'grayscale': 4}


def test_encode_jpeg(jpeg):
    image = pixels(jpeg)
    data = images.encode_jpeg(image)
    decoded = Image.open(io.BytesIO(data))
    assert (decoded.format, decoded.mode) == ('JPEG', 'RGB')
    assert [part[1:3] for part in decoded.layer] == [(1, 1)] * 3  # colour at full resolution
    assert np.abs(np.asarray(decoded).astype(int) - image).mean() < 2


def test_folder_turns_photographs_before_it_compares_their_sizes(tmp_path, capsys):
    """One is stored turned; with it, a WebP and a TIFF, all have one size only after turning."""
    exif = Image.Exif()
    exif[0x0112] = 6
    folder = tmp_path / 'source' / 'class'
    folder.mkdir(parents=True)
    turned = stored('PNG', np.rot90(NOISE), exif=exif)
    files = {'a.png': turned, 'b.png': stored('WEBP', lossless=True), 'c.png': stored('TIFF')}
    for name, data in files.items():
        (folder / name).write_bytes(data)
    command = ['folder', f'--source={folder.parent}', f'--data_dir={tmp_path}', '--name=own']
    command += ['--size=0', '--eval_fraction=0', '--workers=1']
    assert prepare.main(command) == 0
    assert 'train: 1 turned by EXIF orientation, for example' in capsys.readouterr().out
    directory = tmp_path / 'own' / '1.0.0'
    for record in tfds.builder_from_directory(directory).as_data_source('train'):
        np.testing.assert_array_equal(record['image'], NOISE, strict=True)
    first = (directory / 'report.json').read_bytes()
    # A data set from before has the same examples, unturned.
    recipe = json.loads((directory / 'recipe.json').read_text())
    assert ' Turned by EXIF orientation.' in recipe['description']
    recipe['description'] = recipe['description'].replace(' Turned by EXIF orientation.', '')
    (directory / 'recipe.json').write_text(json.dumps(recipe))
    assert prepare.main(command) == 2
    assert 'was made with other settings: description is' in capsys.readouterr().err
    for path in directory.iterdir():
        path.unlink()
    assert prepare.main(command) == 0
    assert (directory / 'report.json').read_bytes() == first
