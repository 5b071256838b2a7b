"""Readable names for the classes of ImageNet."""

import functools
import importlib.resources
from collections.abc import Sequence


def readable(class_names: Sequence[str]) -> tuple[str, ...]:
    """Return a name for each class: synsets such as n02123045 become words such as 'tabby'.

    They become words only if all of them are among the 1,000 synsets of ILSVRC-2012, so that other
    data keep the names that they came with.
    """
    words = _words()
    if all(name in words for name in class_names):
        return tuple(words[name] for name in class_names)
    return tuple(class_names)


@functools.cache
def _words() -> dict[str, str]:
    """Return the readable name of each synset of ILSVRC-2012."""
    table = importlib.resources.files('alexnet_jax.inference') / 'imagenet_class_names.tsv'
    lines = table.read_text(encoding='utf-8').splitlines()
    return dict(line.split('\t') for line in lines)
