"""Turn what a user gives as an image into the pixels that the network was trained on."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image, ImageOps

from alexnet_jax.preparation import images
from alexnet_jax.preparation.images import Unreadable

Picture = str | os.PathLike | Image.Image | np.ndarray
_FORMATS = tuple(dict.fromkeys(images.SUFFIXES.values()))
_MODES = ('1', 'L', 'LA', 'P', 'PA', 'RGB', 'RGBA', 'RGBX', 'CMYK', 'YCbCr', 'HSV', 'LAB')  # 8 bits


def read(picture: Picture, shape: tuple[int, ...], preparation: Mapping[str, Any]) -> np.ndarray:
    """Return the pixels of a picture as `prepare` would store them, uint8 `shape`.

    A photograph is turned by its EXIF orientation (unless the data were prepared without), its
    shorter side is resized and its centre is cropped. A photograph of the data set so gets the
    pixels of the data set. An array that has the shape already is taken as it is.

    Args:
      picture: the path of an image; an image of Pillow with 8 bits a channel; or uint8 [H, W],
        [H, W, 1], [H, W, 3] or, with transparency, which is dropped, [H, W, 4].
      shape: (height, width, channels) of the images of the data set.
      preparation: the settings of `prepare`, of which `turn` and `encoding` are used.

    Raises Unreadable for a file that is missing, broken or too large, or an image that cannot be
    resized; TypeError for another type or dtype, and ValueError for an array of another shape.
    """
    if isinstance(picture, np.ndarray):
        _check_array(picture)
        if picture.shape == shape:
            return picture
        squeezed = picture[..., 0] if picture.shape[2:] == (1,) else picture
        image = Image.fromarray(np.ascontiguousarray(squeezed))
    elif isinstance(picture, Image.Image):
        image = _of_pillow(picture, bool(preparation.get('turn', True)))
    elif isinstance(picture, str | os.PathLike):
        image = _of_file(picture, bool(preparation.get('turn', True)))
    else:
        raise TypeError(
            'an image must be a path, an image of Pillow or a NumPy array of uint8, not '
            f'{type(picture).__name__}'
        )
    pixels = _resize(image.convert('RGB'), shape[:2])
    if preparation.get('encoding') == 'jpeg':
        pixels = simplejpeg.decode_jpeg(images.encode_jpeg(pixels), 'RGB')
    if shape[2] == 1:
        pixels = np.asarray(Image.fromarray(pixels).convert('L'))[..., None]
    return pixels


def _check_array(picture: np.ndarray) -> None:
    if picture.dtype != np.uint8:
        raise TypeError(f'the pixels of an array must be uint8, from 0 to 255, not {picture.dtype}')
    if picture.ndim not in (2, 3) or 0 in picture.shape or picture.shape[2:] not in _CHANNELS:
        raise ValueError(
            f'an array must be [H, W], [H, W, 1], [H, W, 3] or [H, W, 4], not {list(picture.shape)}'
        )


_CHANNELS = ((), (1,), (3,), (4,))


def _of_pillow(picture: Image.Image, turn: bool) -> Image.Image:
    if picture.mode not in _MODES:
        raise Unreadable('broken', f'an image of mode {picture.mode}, not of 8 bits a channel')
    try:
        picture.load()
        return ImageOps.exif_transpose(picture) if turn else picture
    except (OSError, ValueError, SyntaxError) as error:  # of a lazy file that is damaged
        raise Unreadable('broken', str(error)) from error


def _of_file(picture: str | os.PathLike, turn: bool) -> Image.Image:
    path = os.fspath(picture)
    try:
        with open(path, 'rb') as file:
            data = file.read(images.MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a null character
        raise Unreadable('missing', getattr(error, 'strerror', None) or str(error)) from error
    return images.decode(data, os.fsdecode(path), formats=_FORMATS, turn=turn)[0]


def _resize(image: Image.Image, size: tuple[int, ...]) -> np.ndarray:
    height, width = size
    if height == width:
        return images.resize_and_crop(image, height)
    # `prepare` makes squares or leaves images as they are, so this is for data of other programs.
    return np.asarray(ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR))
