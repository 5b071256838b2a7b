"""Decode photographs strictly and resize them as the paper does (Paper 2)."""

import gzip
import io
import warnings
import zlib

import numpy as np
from PIL import Image

from alexnet_jax.runtime.errors import first_line

_FORMATS = {'JPEG': 'JPEG', 'MPO': 'JPEG', 'PNG': 'PNG'}  # MPO: a JPEG followed by more
_SUFFIXES = {'jpg': 'JPEG', 'jpeg': 'JPEG', 'png': 'PNG'}
_MODES = {'CMYK': 'CMYK', 'L': 'grayscale', '1': 'grayscale', 'P': 'palette'}
_MODES |= {'LA': 'transparency', 'RGBA': 'transparency'}

_GZIP = b'\x1f\x8b'

MAX_BYTES = 64 * 1024**2  # of a file; the largest of ImageNet has 15 MB
MAX_PIXELS = 89_478_485  # Pillow's limit for a warning: 256 MiB at three bytes a pixel


class Unreadable(Exception):
    """An image that cannot be used; `kind` is 'broken' or 'too large', and the message says why."""

    def __init__(self, kind: str, reason: str):
        super().__init__(reason)
        self.kind = kind


def decode(
    data: bytes, name: str = '', *, max_bytes: int = MAX_BYTES, max_pixels: int = MAX_PIXELS
) -> tuple[Image.Image, list[str]]:
    """Return the whole image as RGB, and a list of what was unusual about it.

    Only JPEG and PNG are decoded. CMYK, grayscale and palettes are converted, transparency is
    dropped, and the EXIF orientation is ignored (as in 2012). A gzipped file is decompressed:
    ILSVRC-2010 has one, n02487347_1956.JPEG. The list may have 'CMYK', 'grayscale', 'palette',
    'transparency', 'gzip' and, if the suffix of `name` names another format, for example 'PNG named
    JPEG'.

    Raises Unreadable: 'too large' for more than `max_bytes` or, before anything is decoded, more
    than `max_pixels`; 'broken' for a file that is not an image, is truncated or has 16 bits per
    channel. libjpeg silently repairs damage in the middle of a file, which is not detected.
    """
    odd = []
    if data[:2] == _GZIP:
        data, odd = _unzip(data, max_bytes), ['gzip']
    if len(data) > max_bytes:
        raise Unreadable('too large', f'{len(data)} bytes')
    try:
        with warnings.catch_warnings():
            # Pillow warns of damaged EXIF data, which is not used, and of sizes, checked below.
            warnings.simplefilter('ignore')
            image = Image.open(io.BytesIO(data), formats=('JPEG', 'PNG'))
            if image.width * image.height > max_pixels:
                raise Unreadable('too large', f'{image.width}x{image.height} pixels')
            image.load()
    except Image.DecompressionBombError as error:
        raise Unreadable('too large', 'more than twice the pixels that Pillow opens') from error
    except Image.UnidentifiedImageError as error:
        raise Unreadable('broken', 'neither JPEG nor PNG') from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:  # Pillow raises any of these
        raise Unreadable('broken', first_line(error)) from error
    format = _FORMATS[image.format or '']
    expected = _SUFFIXES.get(name.rpartition('.')[2].lower(), format)
    if format != expected:
        odd.append(f'{format} named {expected}')
    if image.mode == 'RGB':
        return image, odd
    if image.mode not in _MODES:
        raise Unreadable('broken', f'Pillow mode {image.mode}, not 8 bits a channel')
    odd.append(_MODES[image.mode])
    if image.mode == 'P':  # via RGBA, so that the palette's transparency is understood
        image = image.convert('RGBA')
    return image.convert('RGB'), odd


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
