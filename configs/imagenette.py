"""The paper's network and recipe on Imagenette: ten classes of ImageNet, 9,469 photographs.

    python -m alexnet_jax.prepare folder --source imagenette2.tgz --name imagenette --data_dir=DATA
    python -m alexnet_jax.main --config=configs/imagenette.py --data_dir=DATA

Needs:    fast.ai's `imagenette2.tgz` or `imagenette2-320.tgz`, with the folders `train` and `val`.
Cost:     2,220 steps of batch 128, 4.1113 GFLOP per image: 1.17 PFLOP in total; two to four hours
          on two CPU cores.
Expected: 20.1 % top-1 error with one crop and 19.1 % with ten views (seed 0).
"""

import ml_collections

from configs import folder


def get_config() -> ml_collections.ConfigDict:
    """Return the paper's configuration with 30 epochs, and drops of the rate at 20 and 26."""
    config = folder.get_config()
    config.data.name = 'imagenette'
    config.optim.update(schedule='steps', milestone_epochs=(20.0, 26.0))
    config.training.total_epochs = 30.0
    config.checkpoint.save_every_steps = 74  # an epoch
    return config
