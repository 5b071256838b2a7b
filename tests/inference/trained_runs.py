"""Tiny trained networks for the tests of `inference`."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
from etils import epath
from PIL import Image

from alexnet_jax.checkpoint.checkpoints import Checkpoints
from alexnet_jax.preparation import folder
from alexnet_jax.training import provenance
from alexnet_jax.training.experiment import build
from configs import tiny
from tests import photographs
from tests.typed_config import typed

CLASSES = ('n01440764', 'n02102040')  # tench, English springer


def save_run(root: Path, **fields):
    """Save a drawn network as step 2 of ROOT/run, as a training does; return its experiment.

    `fields` update the configuration by section.
    """
    config = tiny.get_config()
    config.data.dir = str(root / 'data')
    config.parallel.update(data=1, model=1)
    for section, values in fields.items():
        config[section].update(values)
    experiment, workdir = build(typed(config)), epath.Path(root / 'run')
    provenance.save(experiment, workdir)
    meta = {'config': experiment.config.to_dict(), 'data': experiment.dataset.fingerprint()}
    with Checkpoints(workdir, experiment.config.checkpoint) as checkpoints:
        checkpoints.save(2, draw_state(experiment), meta)
    return experiment


def draw_state(experiment, seed=0):
    """Return a state whose outputs differ from image to image; this compiles nothing."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name = path[-1].key
        if name == 'kernel':
            array = rng.normal(size=leaf.shape) * np.sqrt(2 / np.prod(leaf.shape[:-1]))
        else:
            array = np.full(leaf.shape, name in ('scale', 'var'))
        return jax.device_put(array.astype(leaf.dtype), leaf.sharding)

    def zeros(leaf):
        return jax.device_put(np.zeros(leaf.shape, leaf.dtype), leaf.sharding)

    wanted = experiment.abstract_state()
    others = jax.tree.map(zeros, dataclasses.replace(wanted, params={}, batch_stats={}))
    params, batch_stats = jax.tree.map_with_path(draw, (wanted.params, wanted.batch_stats))
    return dataclasses.replace(others, params=params, batch_stats=batch_stats)


def write_photographs(source: Path) -> list[Path]:
    """Write photographs of many sizes and encodings in train/CLASS and val/CLASS.

    Returns the paths of val, in the order of its examples.
    """
    paths = []
    for number, (_, content) in enumerate(photographs.sample(40)):
        split = 'train' if number < 16 else 'val'
        path = source / split / CLASSES[number % 2] / f'{number}.jpg'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        paths.append(path)
    png = source / 'val' / CLASSES[1] / 'zz.png'  # with transparency, which is dropped
    Image.open(paths[20]).convert('RGBA').save(png)
    return sorted([*paths[16:], png])


def save_run_on_photographs(root: Path, encoding: str = 'raw', **fields):
    """Save a run on photographs of 32 pixels; return (experiment, those of its val)."""
    paths = write_photographs(root / 'source')
    folder.prepare_folder(
        root / 'data', root / 'source', name='photographs', size=32, encoding=encoding
    )
    data = {'name': 'photographs', 'image_shape': (32, 32, 3), 'eval_split': 'val'}
    fields = {'data': {**data, 'train_examples': 0, 'eval_examples': 0}, **fields}
    fields = {'augment': {'crop_px': 28}, 'model': {'num_classes': 2}, **fields}
    return save_run(root, **fields), paths
