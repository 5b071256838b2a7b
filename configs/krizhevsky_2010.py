"""The run behind the paper's Table 1, #145-2010, with the settings of the author's source.

    python -m alexnet_jax.main --config=configs/krizhevsky_2010.py --data_dir=DIR

Needs:    `imagenet2010` as `python -m alexnet_jax.prepare imagenet --year=2010` makes it.
Cost:     as configs/krizhevsky_2012.py. Not run.
Expected: the author's log has 37.4727 % top-1 and 16.9987 % top-5 test error with ten views.
"""

import ml_collections

from configs import krizhevsky_2012


def get_config() -> ml_collections.ConfigDict:
    """Return the configuration of run #145-2010."""
    config = krizhevsky_2012.get_config()
    config.data.update(
        name='imagenet2010', eval_split='test', train_examples=1_261_406, eval_examples=150_000
    )
    config.augment.colour_epochs = 68.0
    config.optim.events = (
        (23, 'all', 1e-3),
        (51, 'all', 1e-4),
        (68, 'conv1', 1e-5),
        (72, 'conv1', 0.0),
        (78, 'all', 1e-5),
    )
    config.training.total_epochs = 93.0
    return config
