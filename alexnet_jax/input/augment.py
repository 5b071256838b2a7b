"""Augment images on the device, inside the jitted step, from uint8 to mean-subtracted floats.

Every random number is a function of the key and the example's index in the global batch, so neither
the mesh nor the number of hosts changes an image.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.ndimage import map_coordinates

from alexnet_jax.input.batch import Statistics
from alexnet_jax.runtime.config import (
    Rule,
    Section,
    above_zero,
    boolean,
    field,
    integer,
    is_number,
    number,
    one_of,
)
from alexnet_jax.runtime.errors import UserError

_RATIO = (3 / 4, 4 / 3)  # least and largest width / height of a resized crop (Szegedy, 2015)
_TRIES = 10  # draws of a resized crop; most fit into the image


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(map(is_number, value))


_area = Rule(
    lambda v: v == () or (_is_pair(v) and 0 < v[0] <= v[1] <= 1),
    '(), or the least and the largest share of the area, such as (0.08, 1.0)',
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentConfig(Section):
    """The section `augment`."""

    crop_px: int = field(integer(1))
    random_crop: bool = field(boolean)
    resized_crop_area: tuple[float, ...] = field(_area, off=())
    mirror: bool = field(boolean)
    images_per_crop: int = field(integer(1))
    mean: str = field(one_of('at_crop', 'centre', 'channels'))
    pixel_divisor: float = field(above_zero)
    colour_std: float = field(number(0.0))
    colour_divisor: float = field(above_zero)
    colour_epochs: float = field(number(0.0))
    brightness: float = field(number(0.0), off=0.0)
    contrast: float = field(number(0.0), off=0.0)
    saturation: float = field(number(0.0), off=0.0)
    mixup_alpha: float = field(number(0.0), off=0.0)
    cutmix_alpha: float = field(number(0.0), off=0.0)
    rotation_degrees: float = field(number(0.0))

    def check(self) -> None:
        """Raise UserError for random sizes of a crop that is not random."""
        if self.resized_crop_area and not self.random_crop:
            raise UserError(
                f'config.augment.resized_crop_area = {self.resized_crop_area} is for random crops, '
                'but random_crop = False; set random_crop=True or resized_crop_area=()'
            )


@dataclasses.dataclass(frozen=True)
class Augment:
    """The paper's data augmentation (Paper 4.1).

    The `statistics` below have one float dtype, which is also the dtype of the result.
    """

    config: AugmentConfig
    colour_steps: int  # number of steps, from the start, with colour noise; 0: all

    def training(
        self,
        images: jax.Array,
        statistics: Statistics,
        key: jax.Array,
        rows: jax.Array,
        step: jax.Array,
    ) -> jax.Array:
        """Crop, mirror and colour each image at random.

        Args:
          images: uint8 [n, H, W, C].
          statistics: see the class.
          key: typed key of this step, the same on every device.
          rows: int32 [n], each example's index in the global batch.
          step: int32 scalar, the number of steps done.

        Returns:
          float [n, crop_px, crop_px, C], the pixels of 0 to 255 minus the mean, divided by
          `pixel_divisor`.
        """
        return jax.vmap(lambda image, row: self._one(image, statistics, key, row, step))(
            images, rows
        )

    def _one(
        self,
        image: jax.Array,
        statistics: Statistics,
        key: jax.Array,
        row: jax.Array,
        step: jax.Array,
    ) -> jax.Array:
        """Return one training image [crop_px, crop_px, C]."""
        group_key = jax.random.fold_in(key, row // self.config.images_per_crop)
        crop_key, mirror_key, _ = jax.random.split(group_key, 3)
        _, _, colour_key = jax.random.split(jax.random.fold_in(key, row), 3)
        if self.config.resized_crop_area:
            box = resized_crop_box(crop_key, image.shape[:2], self.config.resized_crop_area)
            take = functools.partial(
                resized_crop, box=box, size=self.config.crop_px, dtype=statistics.mean_image.dtype
            )
        else:
            spare = jnp.asarray(image.shape[:2], jnp.int32) - self.config.crop_px
            corner = spare // 2
            if self.config.random_crop:
                corner = jax.random.randint(crop_key, (2,), 0, spare + 1, jnp.int32)
            take = functools.partial(self._cut, corner=corner)
        mirror = jax.random.bernoulli(mirror_key) if self.config.mirror else jnp.zeros((), bool)
        jitter = functools.partial(self._jitter, key=jax.random.fold_in(colour_key, 1))
        crop = self._crop(image, statistics, take, mirror, jitter)
        if self.config.rotation_degrees > 0:
            turn = jax.random.uniform(
                jax.random.fold_in(colour_key, 0), (), crop.dtype, minval=-1.0, maxval=1.0
            )
            crop = rotate(crop, turn * math.radians(self.config.rotation_degrees))
        if self.config.colour_std > 0:
            colour = pca_colour(statistics, colour_key, self.config.colour_std)[None, None]
            coloured = (crop + colour) / self.config.colour_divisor
            coloured_now = step < self.colour_steps
            crop = jnp.where(coloured_now, coloured, crop) if self.colour_steps else coloured
        return crop / self.config.pixel_divisor

    @property
    def mixes(self) -> bool:
        """Whether training images are mixed with their partners."""
        return self.config.mixup_alpha > 0 or self.config.cutmix_alpha > 0

    def mix(self, images: jax.Array, key: jax.Array, rows: jax.Array) -> jax.Array:
        """Mix each training image with its partner, that of row ^ 1, in the way its own row draws.

        Args:
          images: float [n, H, W, C], the crops without the mean; each pair of rows 2 i and
            2 i + 1 is adjacent.
          key: typed key of this step, the same on every device.
          rows: int32 [n], each example's index in the global batch.

        Returns:
          float [n, H, W, C].
        """
        size = images.shape[1]
        at = jnp.arange(size, dtype=jnp.int32)

        def own_weights(row: jax.Array) -> jax.Array:
            """Return the weight of the image itself in each pixel, [H, W, 1]."""
            weight, (top, left, bottom, right) = self._mixture(key, row, size, images.dtype)
            inside_y, inside_x = (at >= top) & (at < bottom), (at >= left) & (at < right)
            inside = inside_y[:, None, None] & inside_x[None, :, None]
            return jnp.where(inside, weight, jnp.ones_like(weight))

        weights = jax.vmap(own_weights)(rows)
        return weights * images + (1 - weights) * partners(images)

    def own_shares(self, key: jax.Array, rows: jax.Array, dtype: Any) -> jax.Array:
        """Return the share of its own label in each mixed image, [n]; the rest is its partner's.

        It is the mean over all pixels of the weight of the image itself in `mix`.
        """
        size = self.config.crop_px

        def share(row: jax.Array) -> jax.Array:
            weight, (top, left, bottom, right) = self._mixture(key, row, size, dtype)
            area = ((bottom - top) * (right - left)).astype(dtype)
            return 1 - (1 - weight) * area / size**2

        return jax.vmap(share)(rows)

    def _mixture(
        self, key: jax.Array, row: jax.Array, size: int, dtype: Any
    ) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        """Draw how a row is mixed: the weight of its own pixels in a box, and that box.

        The box is (top, left, bottom, right), int32 scalars; outside it the weight is 1. In mixup
        (Zhang, 2018) it is the whole image. In cutmix (Yun, 2019) the weight is 0. With both,
        either has probability 1/2.
        """
        which_key, mixup_key, cutmix_key, centre_key = jax.random.split(
            jax.random.fold_in(jax.random.fold_in(key, row), 3), 4
        )
        zero, side = jnp.zeros((), jnp.int32), jnp.full((), size, jnp.int32)
        mixup = cutmix = None
        if (alpha := self.config.mixup_alpha) > 0:
            weight = jax.random.beta(mixup_key, alpha, alpha, (), dtype)
            mixup = weight, (zero, zero, side, side)
        if (alpha := self.config.cutmix_alpha) > 0:
            share = jax.random.beta(cutmix_key, alpha, alpha, (), dtype)
            half = (size * jnp.sqrt(1 - share)).astype(jnp.int32) // 2
            y, x = jax.random.randint(centre_key, (2,), 0, size, jnp.int32)
            box = (y - half, x - half, y + half, x + half)
            cutmix = jnp.zeros((), dtype), tuple(jnp.clip(edge, 0, size) for edge in box)
        if mixup is None or cutmix is None:
            only = mixup or cutmix
            assert only is not None, 'neither mixup nor cutmix'
            return only
        either = jax.random.bernoulli(which_key)
        return jax.tree.map(lambda a, b: jnp.where(either, a, b), mixup, cutmix)

    def _cut(self, image: jax.Array, corner: jax.Array) -> jax.Array:
        """Cut the crop at a corner (y, x) out of an image [H, W, C]."""
        size = (self.config.crop_px, self.config.crop_px, image.shape[-1])
        return lax.dynamic_slice(image, (*corner, jnp.zeros_like(corner[0])), size)

    def _jitter(self, crop: jax.Array, key: jax.Array) -> jax.Array:
        """Change brightness, contrast and saturation at random, in this order."""
        changes = {
            change_brightness: self.config.brightness,
            change_contrast: self.config.contrast,
            change_saturation: self.config.saturation,
        }
        for index, (change, most) in enumerate(changes.items()):
            if most > 0:
                own = jax.random.fold_in(key, index)
                low, high = max(0.0, 1 - most), 1 + most
                factor = jax.random.uniform(own, (), crop.dtype, minval=low, maxval=high)
                crop = change(crop, factor)
        return crop

    def _crop(
        self,
        image: jax.Array,
        statistics: Statistics,
        take: Callable[[jax.Array], jax.Array],
        mirror: jax.Array,
        jitter: Callable[[jax.Array], jax.Array] = lambda crop: crop,
    ) -> jax.Array:
        """Take a float crop of the image, change its colours, subtract the mean and mirror it."""
        mean = statistics.mean_image
        crop = jitter(take(image).astype(mean.dtype))
        if self.config.mean == 'at_crop':
            crop = crop - take(mean)
        elif self.config.mean == 'channels':
            crop = crop - jnp.mean(mean, axis=(0, 1), keepdims=True)
        crop = jnp.where(mirror, crop[:, ::-1], crop)
        if self.config.mean == 'centre':  # the 2012 source subtracts it last, so it is not mirrored
            y, x = ((side - self.config.crop_px) // 2 for side in mean.shape[:2])
            crop = crop - mean[y : y + self.config.crop_px, x : x + self.config.crop_px]
        return crop

    def view_corners(self, image_shape: tuple[int, ...], views: int) -> tuple[jax.Array, jax.Array]:
        """Return the corners (y, x) int32 [views, 2] and mirrors bool [views] of the test views.

        One view is the centre. Ten views are the centre, the four corners and the mirror image of
        each (Paper 4.1), with the centre first. Without `mirror`, for images whose mirror image has
        another meaning (digits), they are the five crops, each taken twice, so that their mean is
        that of the five.
        """
        y, x = image_shape[0] - self.config.crop_px, image_shape[1] - self.config.crop_px
        five = jnp.asarray([(y // 2, x // 2), (0, 0), (0, x), (y, 0), (y, x)], jnp.int32)
        if views == 1:
            return five[:1], jnp.zeros(1, bool)
        mirrors = jnp.repeat(jnp.asarray([False, self.config.mirror]), 5)
        return jnp.concatenate([five, five]), mirrors

    def view(
        self, images: jax.Array, statistics: Statistics, corner: jax.Array, mirror: jax.Array
    ) -> jax.Array:
        """Return one view of each image: uint8 [n, H, W, C] -> float [n, crop_px, crop_px, C]."""
        take = functools.partial(self._cut, corner=corner)
        crops = jax.vmap(lambda image: self._crop(image, statistics, take, mirror))(images)
        return crops / self.config.pixel_divisor


def partners(x: jax.Array) -> jax.Array:
    """Exchange rows 2 i and 2 i + 1 of an array [n, ...] with an even n."""
    return x.reshape(-1, 2, *x.shape[1:])[:, ::-1].reshape(x.shape)


def resized_crop_box(
    key: jax.Array, shape: tuple[int, ...], area: tuple[float, ...]
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Draw the box of a resized crop, as torchvision's RandomResizedCrop does.

    Args:
      key: typed key.
      shape: (height, width) of the image.
      area: the least and the largest share of the image's area; the share is uniform between them,
        and the logarithm of width / height is uniform from 3/4 to 4/3.

    Returns:
      (top, left, height, width) in whole pixels, int32 scalars. A box that does not fit into the
      image is drawn again; after ten draws it is the whole image, cut to the nearest such ratio.
    """
    area_key, ratio_key, place_key = jax.random.split(key, 3)
    height, width = shape
    share = jax.random.uniform(area_key, (_TRIES,), minval=area[0], maxval=area[1])
    low, high = map(math.log, _RATIO)
    root = jnp.exp(jax.random.uniform(ratio_key, (_TRIES,), minval=low, maxval=high) / 2)
    side = jnp.sqrt(share * (height * width))
    sides = jnp.round(jnp.stack([side / root, side * root], axis=-1)).astype(jnp.int32)
    limits = jnp.asarray(shape, jnp.int32)
    fits = jnp.all((sides >= 1) & (sides <= limits[None]), axis=-1)
    whole = jnp.asarray(
        [min(height, round(width / _RATIO[0])), min(width, round(height * _RATIO[1]))], jnp.int32
    )
    chosen = jnp.where(jnp.any(fits), sides[jnp.argmax(fits)], whole)
    corner = jax.random.randint(place_key, (2,), 0, limits - chosen + 1, jnp.int32)
    corner = jnp.where(jnp.any(fits), corner, (limits - whole) // 2)
    return corner[0], corner[1], chosen[0], chosen[1]


def resized_crop(
    image: jax.Array, box: tuple[jax.Array, ...], size: int, dtype: jax.typing.DTypeLike
) -> jax.Array:
    """Resize the box (top, left, height, width) of an image [H, W, C] to [size, size, C].

    The interpolation is bilinear, with a wider window where it reduces, so that nothing aliases. At
    the box's edges it reads the pixels of the image beside the box.
    """
    corner, sides = jnp.stack(box[:2]).astype(dtype), jnp.stack(box[2:]).astype(dtype)
    scale = size / sides
    return jax.image.scale_and_translate(
        image.astype(dtype), (size, size, image.shape[-1]), (0, 1), scale, -corner * scale, 'linear'
    )


def change_brightness(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Multiply the pixels [H, W, C] of 0 to 255; they stay in that range."""
    return jnp.clip(image * factor, 0, 255)


def change_contrast(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Multiply the pixels' differences from the image's mean grey; they stay within 0 to 255."""
    mean = jnp.mean(_grey(image))
    return jnp.clip(mean + (image - mean) * factor, 0, 255)


def change_saturation(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Multiply the differences from each pixel's own grey; the pixels stay within 0 to 255."""
    grey = _grey(image)
    return jnp.clip(grey + (image - grey) * factor, 0, 255)


def _grey(image: jax.Array) -> jax.Array:
    """Return the grey [H, W, 1] of an image: for three channels the luma of ITU-R BT.601."""
    if image.shape[-1] != 3:
        return jnp.mean(image, axis=-1, keepdims=True)
    red, green, blue = (image[..., i : i + 1] for i in range(3))
    return 0.299 * red + 0.587 * green + 0.114 * blue


def rotate(image: jax.Array, angle: jax.Array) -> jax.Array:
    """Rotate an image [H, W, C] by `angle` radians about its middle, from the y to the x axis.

    The interpolation is bilinear. Pixels from outside are 0, the mean colour once it is subtracted.
    """
    height, width, channels = image.shape
    y, x = jnp.meshgrid(
        jnp.arange(height, dtype=image.dtype) - (height - 1) / 2,
        jnp.arange(width, dtype=image.dtype) - (width - 1) / 2,
        indexing='ij',
    )
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    source = [cos * y + sin * x + (height - 1) / 2, cos * x - sin * y + (width - 1) / 2]
    with jax.numpy_dtype_promotion('standard'):  # map_coordinates mixes its own indices and weights
        turned = [map_coordinates(image[..., c], source, order=1) for c in range(channels)]
    return jnp.stack(turned, axis=-1)


def pca_colour(statistics: Statistics, key: jax.Array, colour_std: float) -> jax.Array:
    """Draw the colour added to every pixel of one image, [C] (Paper 4.1).

    It is [p_1 .. p_C] [a_1 l_1, .., a_C l_C]^T with a ~ N(0, colour_std), where p_i are the
    eigenvectors of the pixels' covariance and l_i the standard deviations along them, the square
    roots of the eigenvalues, as in the author's cuda-convnet2.
    """
    # DEVIATION: colour noise by standard deviations
    std = statistics.std
    amounts = colour_std * jax.random.normal(key, std.shape, std.dtype) * std
    # This uses neither a matrix product nor a reduction, because jaxlib 0.10.2 miscompiles them on
    # the CPU under vmap: in large batches images get each other's colours (jax-ml/jax#39103).
    shifts = [amounts[i] * statistics.eigenvectors[:, i] for i in range(len(std))]
    return functools.reduce(jnp.add, shifts)
