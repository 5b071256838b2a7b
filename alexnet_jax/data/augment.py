"""Augmentation on the device, inside the jitted step: uint8 in, mean-subtracted float out.

Every random number is a function of (key, the example's index in the global batch), so neither the
mesh nor the number of hosts changes an image.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augment:
    """The paper's data augmentation (Paper 4.1); its fields are the `augment` section.

    `statistics` below is anything with `mean_image` [H, W, C], `eigenvectors` [C, C] (columns) and
    `std` [C], all of one float dtype, which is also the dtype of the result.
    """

    crop_px: int
    random_crop: bool
    mirror: bool
    colour_std: float

    def training(
        self, images: jax.Array, statistics: Any, key: jax.Array, rows: jax.Array
    ) -> jax.Array:
        """Crop, mirror and colour each image by itself.

        Args:
          images: uint8 [n, H, W, C].
          statistics: see the class.
          key: typed key of this step, the same on every device.
          rows: int32 [n], each example's index in the global batch.

        Returns:
          float [n, crop_px, crop_px, C], 0-255 scale less the mean image.
        """
        return jax.vmap(
            lambda image, row: self._one(image, statistics, jax.random.fold_in(key, row))
        )(images, rows)

    def _one(self, image: jax.Array, statistics: Any, key: jax.Array) -> jax.Array:
        """Return one training image [crop_px, crop_px, C]."""
        crop_key, mirror_key, colour_key = jax.random.split(key, 3)
        spare = jnp.asarray(image.shape[:2], jnp.int32) - self.crop_px
        corner = spare // 2
        if self.random_crop:
            corner = jax.random.randint(crop_key, (2,), 0, spare + 1, jnp.int32)
        crop = self._crop(image, statistics, corner)
        if self.mirror:
            crop = jnp.where(jax.random.bernoulli(mirror_key), crop[:, ::-1], crop)
        if self.colour_std > 0:
            crop = crop + pca_colour(statistics, colour_key, self.colour_std)[None, None]
        return crop

    def _crop(self, image: jax.Array, statistics: Any, corner: jax.Array) -> jax.Array:
        """Cut image and mean image at one corner (y, x) and subtract; uint8 is cut, then cast."""
        start = (*corner, jnp.zeros_like(corner[0]))
        size = (self.crop_px, self.crop_px, image.shape[-1])
        mean = lax.dynamic_slice(statistics.mean_image, start, size)
        return lax.dynamic_slice(image, start, size).astype(mean.dtype) - mean

    def view_corners(self, image_shape: tuple[int, ...], views: int) -> tuple[jax.Array, jax.Array]:
        """Return the corners (y, x) int32 [views, 2] and mirrors bool [views] of test views.

        One view is the centre. Ten are the centre, the four corners, and the mirror image of each
        (Paper 4.1), the plain centre first. Without `mirror`, where mirror images are other objects
        (digits), ten views are the five crops, each taken twice: the average is that of the five.
        """
        y, x = image_shape[0] - self.crop_px, image_shape[1] - self.crop_px
        five = jnp.asarray([(y // 2, x // 2), (0, 0), (0, x), (y, 0), (y, x)], jnp.int32)
        if views == 1:
            return five[:1], jnp.zeros(1, bool)
        mirrors = jnp.repeat(jnp.asarray([False, self.mirror]), 5)
        return jnp.concatenate([five, five]), mirrors

    def view(
        self, images: jax.Array, statistics: Any, corner: jax.Array, mirror: jax.Array
    ) -> jax.Array:
        """Return one view of each image: uint8 [n, H, W, C] -> float [n, crop_px, crop_px, C]."""
        crops = jax.vmap(lambda image: self._crop(image, statistics, corner))(images)
        return jnp.where(mirror, crops[:, :, ::-1], crops)


def pca_colour(statistics: Any, key: jax.Array, colour_std: float) -> jax.Array:
    """Draw the colour added to every pixel of one image, [C] (Paper 4.1).

    [p_1 .. p_C] [a_1 l_1, .., a_C l_C]^T with a ~ N(0, colour_std), p_i the eigenvectors of the
    pixels' covariance and l_i the standard deviations along them, the square roots of the
    eigenvalues, as in the author's cuda-convnet2.
    """
    std = statistics.std
    amounts = colour_std * jax.random.normal(key, std.shape, std.dtype) * std
    # Neither a matrix product nor a reduction: jaxlib 0.10.2 on the CPU miscompiles them under vmap
    # and gives the images of large batches one another's colours (jax-ml/jax#39103).
    shifts = [amounts[i] * statistics.eigenvectors[:, i] for i in range(len(std))]
    return functools.reduce(jnp.add, shifts)
