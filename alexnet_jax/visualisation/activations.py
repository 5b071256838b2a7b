"""An image's way through the network: its maps layer by layer, and how many units are silent."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alexnet_jax.inference.network import Network, Prediction
from alexnet_jax.network.specification import CONVOLUTIONS, ModelConfig
from alexnet_jax.network.variants import output_name
from alexnet_jax.visualisation import batches, drawing
from alexnet_jax.visualisation.subjects import Subjects

_MAPS = 4  # of each tower that are shown
_COLOURS = (drawing.RIGHT, drawing.WRONG)  # of tower 1 and of tower 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Silence:
    """How silent the units of one tower are in one layer, after the activation function.

    A unit of a convolution is a map with all its positions.
    """

    layer: str
    tower: int  # 1 or 2
    units: int
    zeros: float  # the share of activations that are 0, over all images, units and positions
    never: int  # units that are 0 at each position of each image


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Activations:
    """The way of one image through the network, and the silence of its units over many.

    Attributes:
      image: float32 [S, S, C], the centre crop of the first image, from 0 to 255.
      title: its name.
      predictions: what the network says about it.
      maps: for each convolution float32 [towers, maps, H, W], after the activation function.
      chosen: for each convolution int [towers, maps], which maps of the layer these are.
      silence: of each layer and tower.
      count: how many images `silence` is over.
      rule: how they were chosen, for a caption.
    """

    image: np.ndarray
    title: str
    predictions: Sequence[Prediction]
    maps: Mapping[str, np.ndarray]
    chosen: Mapping[str, np.ndarray]
    silence: Sequence[Silence]
    count: int
    rule: str

    @property
    def caption(self) -> str:
        """What one sees, in a few sentences."""
        never = sum(row.never for row in self.silence)
        units = sum(row.units for row in self.silence)
        most = max(self.silence, key=lambda row: row.zeros)
        images = 'this image' if self.count == 1 else f'{self.count:,} images'
        number = next(iter(self.maps.values())).shape[1]
        return (
            f'Above, the first image and its {number} most varied maps in each convolution and '
            'tower, each from black (0) to its own maximum. Below, the share of activations that '
            f'are 0 in each layer, over {images}: it is highest in {most.layer}, '
            f'{100 * most.zeros:.0f} %. {never} of {units:,} units are never active on them. '
            f'{self.rule}'
        )

    @property
    def numbers(self) -> dict[str, Any]:
        """For `--json`: `images` and `layers`, a row for each layer and tower."""
        return {'images': self.count, 'layers': [dataclasses.asdict(row) for row in self.silence]}


def after_activation(config: ModelConfig) -> list[str]:
    """Return the names of the activations after the activation function, from conv1 to fc7."""
    names = [
        output_name(name, getattr(config, name).after, 'activation')
        for name in CONVOLUTIONS
        if getattr(config, name).features
    ]
    return names + [name for name in ('fc6', 'fc7') if getattr(config, name).features]


def find(net: Network, found: Subjects) -> Activations:
    """Return the way of the first image, and how silent the units are over all images."""
    model = net.config.model
    names, towers = after_activation(model), model.towers

    def zeros(seen: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Return the share of zeros of each unit, [batch, units] of each layer."""
        shares = {name: jnp.equal(seen[name], 0).astype(np.float32) for name in names}
        return {k: x.mean(axis=tuple(range(1, x.ndim - 1))) for k, x in shares.items()}

    silence = []
    for name, shares in batches.over(net, found.images, zeros).items():
        for tower, part in enumerate(np.split(shares, towers, axis=1), 1):
            silence.append(
                Silence(
                    layer=name,
                    tower=tower,
                    units=part.shape[1],
                    zeros=float(part.mean(dtype=np.float64)),
                    never=int(np.sum(np.all(part == 1, axis=0))),
                )
            )
    silence.sort(key=lambda row: names.index(row.layer))
    first = found.images[:1]
    maps, chosen = {}, {}
    for name in (name for name in names if not name.startswith('fc')):
        chosen[name], maps[name] = _most_varied(net.activations(first, name)[0], towers)
    return Activations(
        image=net.crops(first)[0],
        title=found.titles[0],
        predictions=net.predict(first, 3)[0],
        maps=maps,
        chosen=chosen,
        silence=silence,
        count=len(found),
        rule=found.rule,
    )


def _most_varied(maps: np.ndarray, towers: int) -> tuple[np.ndarray, np.ndarray]:
    """Return which maps of each tower have the highest variance over positions, and these maps.

    [H, W, channels] -> int [towers, maps], float [towers, maps, H, W].
    """
    of_tower = maps.shape[-1] // towers
    variance = maps.var(axis=(0, 1), dtype=np.float64).reshape(towers, of_tower)
    best = np.argsort(-variance, axis=1, kind='stable')[:, :_MAPS]
    chosen = best + of_tower * np.arange(towers)[:, None]
    return chosen, np.moveaxis(maps[..., chosen], (0, 1), (2, 3))


def draw(found: Activations) -> Any:
    """Return the maps above the shares of zeros, as a figure of matplotlib."""
    towers, count = next(iter(found.maps.values())).shape[:2]
    pyplot = drawing.pyplot()
    figure = pyplot.figure(figsize=(7.2, 0.85 * towers * count + 2.6), layout='constrained')
    above, below = figure.subfigures(2, 1, height_ratios=[0.85 * towers * count + 0.3, 2.3])
    grid = above.add_gridspec(towers * count, len(found.maps) + 2)
    picture = above.add_subplot(grid[:, :2])
    drawing.show(picture, found.image)
    lines = [f'{p.name} {100 * p.probability:.0f} %' for p in found.predictions]
    picture.set_xlabel('\n'.join(lines), fontsize=9)
    for column, (name, maps) in enumerate(found.maps.items(), 2):
        for row, pixels in enumerate(maps.reshape(towers * count, *maps.shape[2:])):
            panel = above.add_subplot(grid[row, column])
            panel.imshow(pixels, cmap='gray', vmin=0, interpolation='none')
            drawing.bare(panel)
            if row == 0:
                panel.set_title(name, fontsize=9)
            if column == 2 and towers == 2 and row % count == 0:
                panel.set_ylabel(f'tower {row // count + 1}', fontsize=9)
    draw_silence(found, below.subplots())
    return figure


def draw_silence(found: Activations, axes: Any) -> None:
    """Draw the share of zeros in each layer and tower as bars, with the units never active."""
    layers = list(dict.fromkeys(row.layer for row in found.silence))
    towers = max(row.tower for row in found.silence)
    width = 0.8 / towers
    for row in found.silence:
        x = layers.index(row.layer) + (row.tower - (towers + 1) / 2) * width
        axes.bar(
            x, 100 * row.zeros, 0.94 * width, color=_COLOURS[row.tower - 1],
            hatch='///' if row.tower == 2 else None, edgecolor='white', linewidth=0,
            label=f'tower {row.tower}' if towers == 2 and row.layer == layers[0] else None,
        )  # fmt: skip
        if row.never:
            axes.annotate(
                f'{row.never} never', (x, 100 * row.zeros), ha='center', va='bottom', fontsize=7
            )
    axes.set(xticks=range(len(layers)), xticklabels=layers, ylim=(0, 110), ylabel='zeros in %')
    axes.spines[['top', 'right']].set_visible(False)
    if towers == 2:
        axes.legend(frameon=False, fontsize=8, ncols=2, loc='lower left', bbox_to_anchor=(0, 1))
