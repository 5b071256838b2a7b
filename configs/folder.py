"""The paper's network and training on photographs of your own.

    python -m alexnet_jax.prepare folder --source DIR --name photographs --data_dir=DATA
    python -m alexnet_jax.main --config=configs/folder.py --data_dir=DATA

Needs:    DIR with train/CLASS/* and test/CLASS/*, or CLASS/*, or a tar of such a folder.
Cost:     4.1356 GFLOP per image.
Expected: a small set of photographs is memorised, as in `results/alexnet_250_photographs`.
"""

import ml_collections

from configs import alexnet


def get_config() -> ml_collections.ConfigDict:
    """Return the paper's configuration for a prepared folder of any size."""
    config = alexnet.get_config()
    config.model.num_classes = 0  # the number of classes of the data
    config.data.update(name='photographs', eval_split='', train_examples=0, eval_examples=0)
    config.training.log_every_steps = 10
    config.checkpoint.save_every_steps = 500
    return config
