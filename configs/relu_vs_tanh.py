r"""The four-layer network of Fig. 1, with ReLU or tanh, to compare how fast they learn.

    for unit in relu tanh; do for rate in 0.001 0.002 0.004 0.008 0.016 0.032; do
      python -m alexnet_jax.main --config=configs/relu_vs_tanh.py --data_dir=DIR \
          --config.model.activation=$unit --config.optim.learning_rate=$rate \
          --workdir=runs/${unit}_$rate
    done; done
    python -m alexnet_jax.figures relu_vs_tanh runs/relu_* runs/tanh_* --output=relu_vs_tanh.svg

Needs:    `cifar10`, see configs/cifar10.py.
Cost:     0.2 GFLOP per image; minutes on a GPU until 25 % training error.
Expected: ReLU reaches 25 % training error in a sixth of tanh's epochs (Paper 3.1). Measured only on
          `cifar10_jpeg`, with half of the kernels in conv1 and conv2 and with batches of 64: ReLU
          takes 5.4 epochs, and tanh 24.9, 4.6 times as many (`results/relu_vs_tanh_*`).

As in Fig. 1, there is no regularisation (weight decay, dropout or augmentation), and each
activation uses the learning rate with which it learns fastest. On a CPU, first run a short sweep
with `--config.training.total_epochs=0.32` for each rate; then the same command with more epochs
continues the best run. For tanh the sweep needs two and a half epochs, because the best rate
changes until then (at first 0.016, then 0.008).
"""

import ml_collections

from configs import cifar10_13pct


def get_config() -> ml_collections.ConfigDict:
    """Return the configuration."""
    config = cifar10_13pct.get_config()
    config.augment.update(crop_px=32, random_crop=False, mirror=False)
    config.optim.update(weight_decay=0.0, weight_decay_multipliers=(), schedule='constant')
    config.training.update(total_epochs=40.0, log_every_steps=10)
    config.evaluation.final_views = 1
    return config
