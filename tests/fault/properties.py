"""How many examples a property-based test draws, and the pictures that it draws from."""

import io
import os
from typing import Any

import hypothesis
import numpy as np
from PIL import Image

MORE = int(os.environ.get('PROPERTY_EXAMPLES', '0'))


def examples(count: int) -> Any:
    """Run a property on `count` examples, the same in each run, or on PROPERTY_EXAMPLES others."""
    return hypothesis.settings(
        max_examples=MORE or count,
        derandomize=not MORE,
        database=None,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )


def picture(seed: int, size: tuple[int, int], format: str = 'PNG', mode: str = 'RGB') -> bytes:
    """Return the file of a random image; each seed gives other pixels."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    image = image.convert('L').convert('I;16') if mode == 'I;16' else image.convert(mode)
    image.save(buffer, format)
    return buffer.getvalue()
