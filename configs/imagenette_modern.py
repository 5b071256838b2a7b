"""The paper's network on Imagenette with the recipe of `modern`.

    python -m alexnet_jax.prepare folder --source imagenette2.tgz --name imagenette --data_dir=DATA
    python -m alexnet_jax.main --config=configs/imagenette_modern.py --data_dir=DATA

Needs:    the data set of `imagenette`.
Cost:     2,220 steps of batch 128, as for `imagenette`.
Expected: not known; it was not run to its end yet.
"""

import ml_collections

from configs import imagenette, modern


def get_config() -> ml_collections.ConfigDict:
    """Return the configuration; its 30 epochs are those of `imagenette`."""
    return modern.use_recipe(imagenette.get_config())
