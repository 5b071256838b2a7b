"""Compute which pixels of the image a unit of a convolutional layer sees."""

import dataclasses

from alexnet_jax.network.specification import CONVOLUTIONS, ModelConfig
from alexnet_jax.network.variants import output_name


@dataclasses.dataclass(frozen=True)
class ReceptiveField:
    """The square of pixels that a unit sees, along one axis; it is the same along both.

    Attributes:
      size: the side, in pixels.
      step: from the square of one unit to that of the next, in pixels.
      first: the first pixel of the unit at position 0; below 0 if it sees padding.
    """

    size: int = 1
    step: int = 1
    first: int = 0

    def then(self, window: int, stride: int, before: int) -> 'ReceptiveField':
        """Return that of units which see `window` of these, `stride` apart, with padding before."""
        return ReceptiveField(
            size=self.size + (window - 1) * self.step,
            step=self.step * stride,
            first=self.first - before * self.step,
        )

    def span(self, position: int) -> tuple[int, int]:
        """Return the first pixel of the unit at a position, and the pixel after its last."""
        first = self.first + position * self.step
        return first, first + self.size


def of_convolutions(config: ModelConfig) -> dict[str, ReceptiveField]:
    """Return the receptive field of each activation of the convolutional part by its name.

    In the paper's network they have 11, 51, 99, 131 and 163 pixels for conv1 to conv5.
    """
    fields, field = {}, ReceptiveField()
    for name in CONVOLUTIONS:
        layer = getattr(config, name)
        if layer.features == 0:
            continue
        field = fields[name] = field.then(layer.kernel, layer.stride, layer.padding[0])
        for operation in layer.after:
            if operation == 'pool':
                field = field.then(layer.pool_window, layer.pool_stride, 0)
            elif operation == 'map_norm':
                field = field.then(config.map_norm.n, 1, config.map_norm.n // 2)
            fields[output_name(name, layer.after, operation)] = field
    return fields
