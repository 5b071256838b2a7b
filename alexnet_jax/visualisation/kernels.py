"""Fig. 3: the kernels that a convolution has learned, and how far the towers part colour from grey.

The paper's two towers specialise: the kernels of one are "largely color-agnostic", those of the
other "largely color-specific" (Paper 6.1).
"""

import dataclasses
from typing import Any

import numpy as np

from alexnet_jax.inference.network import Network
from alexnet_jax.network.specification import CONVOLUTIONS
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.visualisation import drawing

RANDOM_COLOUR = 2 / 3  # the expected `colour_share` of independent weights with one variance
_COLUMNS = 16  # as in Fig. 3
_ZOOM = 6  # pixels of the mosaic for each weight, so that the lines between kernels are thin


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Kernels:
    """The kernels of a convolution by tower.

    Attributes:
      layer: such as 'conv1'.
      weights: float32 [towers, kernels of a tower, side, side, C]. C is 3 for the colours of conv1;
        otherwise it is 1, and the weights are means over the inputs of the kernel.
      colour: float [towers, kernels of a tower], the `colour_share` of each; None if C is 1.
    """

    layer: str
    weights: np.ndarray
    colour: np.ndarray | None

    @property
    def caption(self) -> str:
        """What one sees, in a few sentences."""
        towers, count, side = self.weights.shape[:3]
        place = ', tower 1 above tower 2' if towers == 2 else ''
        found = f'The {towers * count} kernels of {self.layer}, {side} x {side}{place}. '
        if self.colour is None:
            return (
                f'{found}Each is the mean over its inputs and is scaled on its own: red is '
                'positive, blue is negative, white is 0.'
            )
        shares = ' and '.join(f'{100 * share:.0f} %' for share in self.colour.mean(axis=1))
        whose = 'of each tower' if towers == 2 else 'of them all'
        return (
            f'{found}Each is scaled on its own: mid-grey is 0, and its largest weight is 0 or 255. '
            f'Colour, the share of the sum of squares that lies off the grey axis, is {shares}, '
            f'the mean {whose}; random weights have {100 * RANDOM_COLOUR:.0f} %.'
        )

    @property
    def numbers(self) -> dict[str, Any]:
        """For `--json`: `layer`, `kernels` and `colour` of each tower (None without colours)."""
        towers, count = self.weights.shape[:2]
        colour = None if self.colour is None else self.colour.mean(axis=1).tolist()
        return {'layer': self.layer, 'kernels': [count] * towers, 'colour': colour}


def find(net: Network, layer: str = 'conv1') -> Kernels:
    """Return the kernels of a convolution.

    Raises UserError if the network has no such convolution, or if it is locally connected and so
    has kernels for each position.
    """
    there = [name for name in CONVOLUTIONS if name in net.params]
    if layer not in there:
        raise UserError(f'{layer} is not a convolution of this network; name {", ".join(there)}')
    kernel = np.asarray(net.params[layer]['kernel'], np.float32)  # [side, side, C_in, kernels]
    if kernel.ndim != 4:
        raise UserError(f'{layer} has other kernels at each position; name another convolution')
    if not (layer == 'conv1' and kernel.shape[2] == 3):
        kernel = kernel.mean(axis=2, keepdims=True)
    kernels = np.moveaxis(kernel, -1, 0)
    weights = kernels.reshape(net.config.model.towers, -1, *kernels.shape[1:])
    colour = colour_share(weights) if weights.shape[-1] == 3 else None
    return Kernels(layer=layer, weights=weights, colour=colour)


def colour_share(kernels: np.ndarray) -> np.ndarray:
    """Return the share of each kernel's sum of squares that lies off the grey axis, from 0 to 1.

    A kernel is the sum of its grey part, at each position the mean of the three colours, and of the
    rest, which is orthogonal to it: sum (w - grey)^2 / sum w^2. It is 0 for a kernel that sees grey
    only, 1 for one that is blind to grey, and 2/3 for a kernel of one primary colour. A kernel of
    zeros has 0. [..., side, side, 3] -> [...].
    """
    wide = np.asarray(kernels, np.float64)
    grey = wide.mean(axis=-1, keepdims=True)
    off, total = (np.sum(np.square(x), axis=(-3, -2, -1)) for x in (wide - grey, wide))
    return np.divide(off, total, out=np.zeros_like(total), where=total > 0)


def draw(found: Kernels) -> Any:
    """Return the kernels as a figure of matplotlib, tower 1 above tower 2."""
    mosaics = [mosaic(tower) for tower in found.weights]
    width = 6.4
    height = width * sum(m.shape[0] for m in mosaics) / mosaics[0].shape[1]
    figure, axes = drawing.pyplot().subplots(
        len(mosaics), 1, squeeze=False, figsize=(width, height + 0.35 * len(mosaics)),
        layout='constrained',
    )  # fmt: skip
    for number, (panel, pixels) in enumerate(zip(axes[:, 0], mosaics, strict=True), 1):
        panel.imshow(pixels, interpolation='none')
        panel.axis('off')
        words = [f'tower {number}'] if len(mosaics) > 1 else [found.layer]
        if found.colour is not None:
            words.append(f'colour {100 * found.colour[number - 1].mean():.0f} %')
        panel.set_title(', '.join(words), fontsize=9, loc='left', pad=3)
    return figure


def mosaic(kernels: np.ndarray) -> np.ndarray:
    """Return kernels, [n, side, side, C], side by side as an image, float [H, W, 3] from 0 to 1.

    Each is divided by twice its largest absolute weight, and 0.5 is added.
    """
    count, side = kernels.shape[:2]
    largest = np.abs(kernels).max(axis=(1, 2, 3), keepdims=True)
    scaled = kernels / np.maximum(2 * largest, np.finfo(np.float32).tiny) + 0.5
    if kernels.shape[-1] == 1:
        scaled = drawing.pyplot().get_cmap('RdBu_r')(scaled[..., 0])[..., :3]
    columns = min(count, _COLUMNS)
    cell = side * _ZOOM + 2  # with a white line
    pixels = np.ones((-(-count // columns) * cell - 2, columns * cell - 2, 3), np.float32)
    for index, kernel in enumerate(scaled):
        y, x = (place * cell for place in divmod(index, columns))
        zoomed = kernel.repeat(_ZOOM, axis=0).repeat(_ZOOM, axis=1)
        pixels[y : y + cell - 2, x : x + cell - 2] = zoomed
    return pixels
