"""Draw with matplotlib: to a file, or as an SVG element of a page of HTML."""

import dataclasses
import io
import itertools
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from etils import epath

from alexnet_jax.runtime import storage
from alexnet_jax.runtime.errors import UserError, first_line

# Colours of the figures of a page -> variables of CSS, so that a page has others in the dark.
INK, FAINT, *LINES = ('#010101', '#020202', '#030303', '#040404', '#050505', '#060606')
RIGHT, WRONG = '#0072B2', '#E69F00'  # blue and orange, which colour-blind readers tell apart
_VARIABLES = {INK: 'ink', FAINT: 'faint'} | {c: f'line-{n}' for n, c in enumerate(LINES, 1)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawing:
    """A figure as an SVG element to stand in a page of HTML."""

    title: str
    caption: str
    svg: str  # colours are the variables --ink, --faint and --line-1 to --line-4 of CSS


def pyplot() -> Any:
    """Return `matplotlib.pyplot`; raise UserError where it is not installed."""
    try:
        import matplotlib
    except ImportError as error:
        raise UserError('figures need matplotlib; pip install "matplotlib>=3.11.2,<4"') from error
    matplotlib.use('agg')
    # Text is stored as text, and the bytes do not change from run to run.
    matplotlib.rcParams.update({'svg.fonttype': 'none', 'svg.hashsalt': 'alexnet_jax'})
    from matplotlib import pyplot

    return pyplot


def colours() -> Iterator[str]:
    """Yield colours without end."""
    return itertools.cycle(pyplot().rcParams['axes.prop_cycle'].by_key()['color'])


def show(axes: Any, pixels: np.ndarray) -> None:
    """Show an image, [H, W, 1] or [H, W, 3] from 0 to 255, in axes without ticks."""
    image = np.clip(pixels, 0, 255).astype(np.uint8)
    axes.imshow(image[..., 0] if image.shape[-1] == 1 else image, cmap='gray', vmin=0, vmax=255)
    bare(axes)


def bare(axes: Any) -> None:
    """Leave the ticks of axes out, and draw their frame thinly."""
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set(linewidth=0.5, color='0.5')


def save(figure: Any, path: epath.Path) -> None:
    """Write a figure to a .svg, .png or .pdf file and close it.

    Raises UserError for another suffix, and for a file that cannot be written.
    """
    try:
        with storage.writing(path):
            figure.savefig(
                path, dpi=150, metadata={'Date': None} if path.suffix == '.svg' else None
            )
    except ValueError as error:  # of an unknown suffix
        reason = first_line(error)
        raise UserError(f'cannot write {path} ({reason}); name a .svg, .png or .pdf') from error
    finally:
        pyplot().close(figure)


def inline(figure: Any, title: str, caption: str) -> Drawing:
    """Return a figure as an SVG element that has no address of a name space and no colours."""
    text = io.StringIO()
    figure.savefig(text, format='svg', transparent=True, metadata={'Date': None})
    pyplot().close(figure)
    svg = text.getvalue()
    svg = svg[svg.index('<svg') :]
    svg = re.sub(r'<metadata>.*?</metadata>', '', svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', '', svg).replace('xlink:href', 'href')
    own = re.sub(r'\W', '-', title.lower())  # two figures of a page may not share an id
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf'\1{own}-', svg)
    svg = re.sub(r'#0\d0\d0\d', lambda colour: f'var(--{_VARIABLES[colour[0]]})', svg)
    svg = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', rf'<svg \1 aria-label="{title}">', svg)
    return Drawing(title=title, caption=caption, svg=svg.replace('<svg ', '<svg role="img" ', 1))
