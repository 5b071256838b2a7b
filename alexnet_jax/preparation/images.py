"""Decode photographs strictly and resize them as the paper does (Paper 2)."""

import contextlib
import gzip
import io
import os
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageFile, TiffImagePlugin

from alexnet_jax.runtime.errors import UserError, first_line

SUFFIXES = {'jpg': 'JPEG', 'jpeg': 'JPEG', 'png': 'PNG', 'webp': 'WEBP', 'bmp': 'BMP'}
SUFFIXES |= {'gif': 'GIF', 'tif': 'TIFF', 'tiff': 'TIFF'}

_FORMATS = {'MPO': 'JPEG'}  # a JPEG followed by others
_MODES = {'RGB': '', 'CMYK': 'CMYK', 'L': 'grayscale', '1': 'grayscale', 'P': 'palette'}
_MODES |= {'LA': 'transparency', 'RGBA': 'transparency', 'PA': 'transparency'}

_ORIENTATION = 0x0112  # the EXIF tag: 1 is upright, and each of these is undone by its method
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Tags of TIFF: the size of a tile, and where the strips or the tiles are.
_TILE_WIDTH, _TILE_LENGTH, _STRIPS, _TILES = 322, 323, 273, 324
_MAX_PIECES = 100_000  # strips or tiles; Pillow takes two seconds for as many

_GZIP = b'\x1f\x8b'
_PNG = b'\x89PNG\r\n\x1a\n'
_JPEG = b'\xff\xd8'
_TIFF = b'II', b'MM'

MAX_BYTES = 64 * 1024**2  # of a file; the largest of ImageNet has 15 MB
MAX_PIXELS = 89_478_485  # Pillow's limit for a warning: 256 MiB at three bytes a pixel


class Unreadable(Exception):
    """An image that cannot be used; `kind` is 'broken' or 'too large', and the message says why."""

    def __init__(self, kind: str, reason: str):
        super().__init__(reason)
        self.kind = kind


def decode(
    data: bytes,
    name: str = '',
    *,
    formats: Sequence[str] = ('JPEG', 'PNG'),
    turn: bool = False,
    max_bytes: int = MAX_BYTES,
    max_pixels: int = MAX_PIXELS,
) -> tuple[Image.Image, list[str]]:
    """Return the whole image as RGB, and a list of what was unusual about it.

    CMYK, grayscale and palettes are converted, transparency is dropped, colours of 16 bits are
    reduced to their upper 8, and of several frames the first is taken. Metadata other than the
    orientation is not used, and it may be damaged. A gzipped file is decompressed: ILSVRC-2010 has
    one, n02487347_1956.JPEG.

    Args:
      data: the bytes of the file.
      name: its name, whose suffix says which format it should have.
      formats: those that are decoded, of the values of `SUFFIXES`.
      turn: whether to turn the image as its EXIF orientation (or, without one, that of its XMP)
        says. Pillow always turns a TIFF. ImageNet was used unturned in 2012.
      max_bytes, max_pixels: limits of the file and of the image.

    The list may have 'CMYK', 'grayscale', 'palette', 'transparency', 'gzip', 'reduced from 16
    bits', 'turned by EXIF orientation' or 'with EXIF orientation ignored', 'of several frames (the
    first is used)' and, if the suffix of `name` names another format, for example 'PNG named JPEG'.

    Raises Unreadable: 'too large' for more than `max_bytes` or, before anything is decoded, more
    than `max_pixels`; 'broken' for a file that is no image of these formats, is truncated or has
    other colours, for example gray of 16 bits. libjpeg silently repairs damage in the middle of a
    file, which is not detected. Raises UserError if this build of Pillow has no WebP.
    """
    odd = []
    if data[:2] == _GZIP:
        data, odd = _unzip(data, max_bytes), ['gzip']
    if len(data) > max_bytes:
        raise Unreadable('too large', f'{len(data)} bytes')
    try:
        image, format, more = _decode(data, formats, turn, max_pixels)
    except Unreadable as error:
        try:  # perhaps only its metadata is damaged, or larger than Pillow reads
            image, format, more = _decode(_without_metadata(data), formats, turn, max_pixels)
        except Unreadable:
            raise error from None
    expected = SUFFIXES.get(name.rpartition('.')[2].lower(), format)
    if format != expected:
        odd.append(f'{format} named {expected}')
    return image, odd + more


def _decode(
    data: bytes, formats: Sequence[str], turn: bool, max_pixels: int
) -> tuple[Image.Image, str, list[str]]:
    """Return the image as RGB, its format, and what was unusual about it."""
    try:
        with warnings.catch_warnings(), _quiet(data):
            # Pillow warns of damaged metadata, which is not used, and of sizes, checked below.
            warnings.simplefilter('ignore')
            if 'TIFF' in formats and data.startswith(_TIFF):
                _check_pieces(data, max_pixels)
            image = Image.open(io.BytesIO(data), formats=tuple(formats))
            odd = _check(image, max_pixels)
            format = _FORMATS.get(image.format or '', image.format or '')
            method = _TURNS.get(_orientation(image))
            if format == 'PNG':
                _check_pixels(data)
            image.load()
            if method is not None and (turn or format == 'TIFF'):
                odd.append('turned by EXIF orientation')
            elif method is not None:
                odd.append('with EXIF orientation ignored')
            rgb = image
            if image.mode in ('P', 'PA'):  # so that the palette's transparency is understood
                rgb = image.convert('RGBA')
            if image.mode != 'RGB':
                rgb = rgb.convert('RGB')
            if method is not None and turn and format != 'TIFF':
                rgb = rgb.transpose(method)
            if _has_frames(image):
                odd.append('of several frames (the first is used)')
    except Unreadable:
        raise
    except Image.DecompressionBombError as error:
        raise Unreadable('too large', 'more than twice the pixels that Pillow opens') from error
    except Image.UnidentifiedImageError as error:
        raise Unreadable('broken', _unidentified(data, formats)) from error
    except Exception as error:  # of a damaged file, Pillow raises errors of almost any type
        raise Unreadable('broken', first_line(error) or type(error).__name__) from error
    return rgb, format, odd


@contextlib.contextmanager
def _quiet(data: bytes) -> Iterator[None]:
    """Keep libtiff, which writes to the standard error of the process, from doing so."""
    try:
        error = os.dup(2) if data.startswith(_TIFF) else None
    except OSError:  # it is closed
        error = None
    if error is None:
        yield
        return
    with open(os.devnull, 'w') as nowhere:
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(error, 2)
            os.close(error)


def _check(image: ImageFile.ImageFile, max_pixels: int) -> list[str]:
    """Raise Unreadable, before an image is decoded, if it is too large or of other colours.

    Returns what is unusual about its colours.
    """
    if image.width * image.height > max_pixels:
        raise Unreadable('too large', f'{image.width}x{image.height} pixels')
    if image.mode not in _MODES:
        raise Unreadable('broken', f'Pillow mode {image.mode}, not 8 bits a channel of RGB or gray')
    if image.format == 'PNG' and image.mode == 'P' and not image.palette:
        raise Unreadable('broken', 'its palette is missing')
    if image.format == 'PNG' and image.tile[0].extents != (0, 0, *image.size):
        raise Unreadable('broken', 'its first frame is smaller than the image')
    odd = [_MODES[image.mode]] if image.mode != 'RGB' else []
    return odd + ['reduced from 16 bits'] * (';16' in repr(image.tile))


def _check_pieces(data: bytes, max_pixels: int) -> None:
    """Raise Unreadable for a TIFF of huge or very many pieces: libtiff decodes whole ones.

    Pillow allocates memory for each piece when it opens the file, so this comes before.
    """
    file = io.BytesIO(data)
    tags = TiffImagePlugin.ImageFileDirectory_v2(data[: 16 if data[2] == 43 else 8])  # 43: BigTIFF
    file.seek(tags.next)
    tags.load(file)
    width, height = (tags.get(tag, 1) for tag in (_TILE_WIDTH, _TILE_LENGTH))
    if width * height > max_pixels:
        raise Unreadable('too large', f'tiles of {width}x{height} pixels')
    pieces = max(len(tags.get(tag, ())) for tag in (_STRIPS, _TILES))
    if pieces > _MAX_PIECES:
        raise Unreadable('too large', f'{pieces} strips or tiles')


def _check_pixels(data: bytes) -> None:
    """Raise Unreadable if the pixels of a PNG are damaged, which Pillow does not notice."""
    for kind, _, _, whole in _png_chunks(data):
        if _is_critical(kind) and not whole:
            raise Unreadable('broken', f'the checksum of its {kind.decode()} is wrong')


def _orientation(image: Image.Image) -> Any:
    """Return the EXIF orientation of an image, or None if it has none that can be read."""
    try:
        return image.getexif().get(_ORIENTATION)
    except Exception:  # of damaged metadata, Pillow raises errors of almost any type
        return None


def _has_frames(image: Image.Image) -> bool:
    """Say whether more frames follow the first; this changes a GIF, which looks for the next."""
    try:
        return getattr(image, 'is_animated', False)
    except Exception:  # the next frame is damaged
        return True


def _unidentified(data: bytes, formats: Sequence[str]) -> str:
    """Return why Pillow cannot open a file."""
    if not data:
        return 'the file is empty'
    for format in formats:
        accept = Image.OPEN[format][1]
        accepted = accept(data[:16]) if accept else False
        if isinstance(accepted, str):
            raise UserError(
                f'this Pillow was built without {format}; install a complete one with '
                f'`pip install --force-reinstall pillow`, or convert the {format} images'
            )
        if accepted:
            return f'its {format} header is damaged, or of a kind that is not read'
    neither = f'neither {" nor ".join(formats)}'
    return f'HEIC, AVIF or a video, {neither}' if data[4:8] == b'ftyp' else neither


def _without_metadata(data: bytes) -> bytes:
    """Return a PNG or a JPEG file without what its pixels and its orientation do not need."""
    if data.startswith(_PNG):
        ranges = _png_metadata(data)
    elif data.startswith(_JPEG):
        ranges = _jpeg_metadata(data)
    else:
        return data
    kept, at = [], 0
    for start, end in ranges:
        kept.append(data[at:start])
        at = end
    return b''.join([*kept, data[at:]])


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int, bool]]:
    """Yield the kind of each chunk, its start, its end, and whether its checksum is right."""
    at = len(_PNG)
    while at + 12 <= len(data):
        length, kind = struct.unpack_from('>I4s', data, at)
        end = at + 12 + length
        if not kind.isalpha() or end > len(data):
            return
        checksum = int.from_bytes(data[end - 4 : end])
        yield kind, at, end, zlib.crc32(memoryview(data)[at + 4 : end - 4]) == checksum
        at = end


def _png_metadata(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield the start and the end of the chunks that a PNG file does not need."""
    for kind, start, end, whole in _png_chunks(data):
        if not _is_critical(kind) and not (kind == b'eXIf' and whole):
            yield start, end


def _is_critical(kind: bytes) -> bool:
    """Say whether the pixels of a PNG depend on this kind of chunk."""
    return kind[:1].isupper()


def _jpeg_metadata(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield the start and the end of the segments that a JPEG file does not need."""
    at = len(_JPEG)
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker, length = struct.unpack_from('>HH', data, at)
        if marker == 0xFFFF:  # padding
            at += 1
            continue
        end = at + 2 + length
        if marker < 0xFFC0 or 0xFFD0 <= marker <= 0xFFDA or length < 2 or end > len(data):
            return
        # libjpeg learns the colours from JFIF and Adobe, and ignores either if it is shorter. EXIF
        # and XMP share a marker and have the orientation.
        needed = {0xFFE0: length >= 16, 0xFFE1: True, 0xFFEE: length >= 14}
        if not needed.get(marker, not (0xFFE0 <= marker <= 0xFFEF or marker == 0xFFFE)):
            yield at, end
        at = end


def _unzip(data: bytes, max_bytes: int) -> bytes:
    """Return the decompressed data, at most `max_bytes` and one more."""
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            return file.read(max_bytes + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise Unreadable('broken', f'gzip: {error}') from error


def resize_and_crop(image: Image.Image, size: int = 256) -> np.ndarray:
    """Resize an RGB image's shorter side to `size` and crop the centre (Paper 2).

    Returns uint8 [size, size, 3]. The interpolation is bilinear, and antialiased when shrinking
    (Pillow's BILINEAR). The longer side is rounded to the nearest pixel. If the crop cannot be
    exactly central, it is a pixel nearer to the top or the left.

    Raises Unreadable, 'too large', if a long strip would grow beyond `MAX_PIXELS`.
    """
    shorter = min(image.size)
    width, height = (round(side * size / shorter) for side in image.size)
    if width * height > MAX_PIXELS:
        raise Unreadable(
            'too large', f'{image.width}x{image.height} pixels become {width}x{height}'
        )
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - size) // 2, (height - size) // 2
    return np.asarray(image.crop((left, top, left + size, top + size)))


def encode_jpeg(image: np.ndarray) -> bytes:
    """Encode uint8 [H, W, 3] as a JPEG file of quality 95, with colour at full resolution."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, 'JPEG', quality=95, subsampling=0)
    return buffer.getvalue()
