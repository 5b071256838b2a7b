"""Augment images on the device, inside the jitted step, from uint8 to mean-subtracted floats.

Every random number is a function of the key and the example's index in the global batch, so neither
the mesh nor the number of hosts changes an image.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.ndimage import map_coordinates

from alexnet_jax.input.batch import Statistics
from alexnet_jax.runtime.config import (
    Section,
    above_zero,
    boolean,
    field,
    integer,
    number,
    one_of,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentConfig(Section):
    """The section `augment`."""

    crop_px: int = field(integer(1))
    random_crop: bool = field(boolean)
    mirror: bool = field(boolean)
    images_per_crop: int = field(integer(1))
    mean: str = field(one_of('at_crop', 'centre', 'channels'))
    pixel_divisor: float = field(above_zero)
    colour_std: float = field(number(0.0))
    colour_divisor: float = field(above_zero)
    colour_epochs: float = field(number(0.0))
    rotation_degrees: float = field(number(0.0))


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
        spare = jnp.asarray(image.shape[:2], jnp.int32) - self.config.crop_px
        corner = spare // 2
        if self.config.random_crop:
            corner = jax.random.randint(crop_key, (2,), 0, spare + 1, jnp.int32)
        mirror = jax.random.bernoulli(mirror_key) if self.config.mirror else jnp.zeros((), bool)
        crop = self._crop(image, statistics, corner, mirror)
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

    def _crop(
        self, image: jax.Array, statistics: Statistics, corner: jax.Array, mirror: jax.Array
    ) -> jax.Array:
        """Crop the image at a corner (y, x), cast it to float, subtract the mean and mirror it."""
        size = (self.config.crop_px, self.config.crop_px, image.shape[-1])
        mean, start = statistics.mean_image, (*corner, jnp.zeros_like(corner[0]))
        crop = lax.dynamic_slice(image, start, size).astype(mean.dtype)
        if self.config.mean == 'at_crop':
            crop = crop - lax.dynamic_slice(mean, start, size)
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
        crops = jax.vmap(lambda image: self._crop(image, statistics, corner, mirror))(images)
        return crops / self.config.pixel_divisor


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
