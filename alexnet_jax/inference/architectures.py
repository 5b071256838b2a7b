"""The configurations of networks that other programs trained, whose files do not hold them.

`paper`, `torchvision` and `caffe` return what `configs/alexnet.py`, `configs/torchvision.py` and
`configs/caffenet.py` return, as nested dictionaries: an installed package has no `configs/`. A test
compares them field by field. A field that has an `off` value may be
left out here. `configs/alexnet.py` says what each field means.
"""

from collections.abc import Mapping
from typing import Any

from alexnet_jax.input.augment import AugmentConfig
from alexnet_jax.network.specification import ModelConfig
from alexnet_jax.runtime.config import FieldError, make
from alexnet_jax.runtime.errors import UserError

Config = dict[str, Any]


def paper() -> Config:
    """Return the configuration of the paper's network and of its training."""
    return {
        'seed': 0,
        'model': {
            'num_classes': 1000,
            'towers': 2,
            'conv1': _convolution(96, kernel=11, stride=4, padding=(0, 3), after=_LRN_POOL),
            'conv2': _convolution(256, both=False, bias=1.0, kernel=5, padding=(2, 2))
            | {'after': _LRN_POOL},
            'conv3': _convolution(384, both=True),
            'conv4': _convolution(384, both=False, bias=1.0),
            'conv5': _convolution(256, both=False, bias=1.0, after=('activation', 'pool')),
            'conv6': _convolution(0, both=True, bias=1.0),
            'fc6': _hidden(),
            'fc7': _hidden(),
            'fc8': {'init_std': 0.01, 'init_bias': 0.0},
            'lrn': {'k': 2.0, 'n': 5, 'alpha': 1e-4, 'beta': 0.75}
            | {'divide_alpha': False, 'across_towers': False},
            'map_norm': {'k': 1.0, 'n': 5, 'alpha': 1e-3, 'beta': 0.75},
            'bn': {'momentum': 0.9, 'epsilon': 1e-5},
            'activation': 'relu',
            'initializer': 'normal',
            'dropout': 0.5,
            'dropout_inverted': False,
            'dropout_inputs': False,
            'dtype': 'float32',
            'precision': 'highest',
            'forms': 'auto',
        },
        'parallel': {
            'data': -1,
            'model': 1,
            'backend': 'shard_map',
            'cpu_devices': 0,
            'initialization_timeout_s': 300,
            'heartbeat_timeout_s': 100,
            'shutdown_timeout_s': 10,
        },
        'data': {
            'name': 'imagenet2012',
            'dir': '',
            'train_split': 'train',
            'eval_split': 'validation',
            'image_shape': (256, 256, 3),
            'train_examples': 1_281_167,
            'eval_examples': 50_000,
            'read_threads': 2,
            'prefetch_batches': 2,
        },
        'augment': {
            'crop_px': 224,
            'random_crop': True,
            'resized_crop_area': (),
            'mirror': True,
            'images_per_crop': 1,
            'mean': 'at_crop',
            'pixel_divisor': 1.0,
            'colour_std': 0.1,
            'colour_divisor': 1.0,
            'colour_epochs': 0.0,
            'brightness': 0.0,
            'contrast': 0.0,
            'saturation': 0.0,
            'mixup_alpha': 0.0,
            'cutmix_alpha': 0.0,
            'rotation_degrees': 0.0,
        },
        'optim': {
            'learning_rate': 0.01,
            'reference_batch': 0,
            'warmup_epochs': 0.0,
            'momentum': 0.9,
            'weight_decay': 0.0005,
            'rate_inside_velocity': True,
            'nesterov': False,
            'lars_trust_coefficient': 0.0,
            'lr_multipliers': (),
            'weight_decay_multipliers': (),
            'schedule': 'plateau',
            'drop_factor': 0.1,
            'milestone_epochs': (),
            'plateau_patience': 5,
            'plateau_min_delta': 0.001,
            'plateau_max_drops': 3,
            'events': (),
        },
        'training': {
            'batch_size': 128,
            'accumulation_steps': 1,
            'label_smoothing': 0.0,
            'ema_decay': 0.0,
            'total_epochs': 90.0,
            'total_steps': 0,
            'log_every_steps': 100,
            'eval_every_epochs': 1.0,
            'watchdog_s': 1800,
            'watchdog_slow_s': 3600,
            'init_from': '',
            'compilation_cache_dir': '',
        },
        'evaluation': {
            'batch_size': 128,
            'views': 1,
            'final_views': 10,
            'checkpoint': 'latest',
            'ensemble': (),
            'ensemble_weights': 'mean',
            'ensemble_search_split': '',
            'ensemble_dir': '',
            'report_dir': '',
        },
        'checkpoint': {'save_every_steps': 2000, 'keep_latest': 2, 'keep_best': 1},
        'log': {'tensorboard': True, 'progress_bar': True, 'profile_steps': (0, 0)},
    }


def torchvision() -> Config:
    """Return the configuration of `torchvision.models.alexnet`."""
    config = paper()
    model = config['model']
    model |= {'towers': 1, 'initializer': 'pytorch'}
    model |= {'dropout_inverted': True, 'dropout_inputs': True}
    model['conv1'] |= {'features': 64, 'padding': (2, 2), 'after': ('activation', 'pool')}
    model['conv2'] |= {'features': 192, 'after': ('activation', 'pool')}
    model['conv4']['features'] = 256
    for name in ('conv2', 'conv4', 'conv5', 'fc6', 'fc7'):
        model[name]['init_bias'] = 0.0
    config['augment'] |= {'mean': 'channels', 'pixel_divisor': 57.4, 'colour_std': 0.0}
    config['optim'] |= {'weight_decay': 1e-4, 'rate_inside_velocity': False}
    config['optim'] |= {'schedule': 'steps', 'milestone_epochs': (30.0, 60.0)}
    config['training']['batch_size'] = 256
    config['evaluation']['final_views'] = 1
    return config


def caffe() -> Config:
    """Return the configuration of Caffe's CaffeNet; a `.caffemodel` says how it differs."""
    config = paper()
    model = config['model']
    model['conv1'] |= {'padding': (0, 0), 'after': ('activation', 'pool', 'lrn')}
    model['conv2']['after'] = ('activation', 'pool', 'lrn')
    model['lrn'] |= {'k': 1.0, 'divide_alpha': True, 'across_towers': True}
    model['fc6']['init_std'] = model['fc7']['init_std'] = 0.005
    model['dropout_inverted'] = True
    config['augment'] |= {'crop_px': 227, 'colour_std': 0.0}
    config['optim'] |= {
        'lr_multipliers': (('bias', 2.0),),
        'weight_decay_multipliers': (('bias', 0.0),),
        'schedule': 'steps',
        'milestone_epochs': (20.0, 40.0, 60.0, 80.0),
    }
    config['training']['batch_size'] = 256
    config['evaluation']['final_views'] = 1
    return config


def sections(path: Any, config: Mapping[str, Any]) -> tuple[ModelConfig, AugmentConfig]:
    """Return the sections `model` and `augment` of a file's configuration, typed and checked.

    Raises UserError that names the file and the field.
    """
    name = 'model'
    try:
        model = make(ModelConfig, config[name])
        name = 'augment'
        return model, make(AugmentConfig, config[name])
    except FieldError as error:
        raise UserError(f'{path}: config.{name}.{error.field}{error.words}') from error
    except UserError as error:
        raise UserError(f'{path}: {error}') from error
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f'{path}: its configuration has no section {name}') from error


_LRN_POOL = ('activation', 'lrn', 'pool')


def _convolution(
    features: int, *, both: bool | None = None, bias: float = 0.0, **fields: Any
) -> dict[str, Any]:
    """Return a convolution's fields; `both` is whether it sees both towers, None for conv1."""
    return {
        'features': features,
        'kernel': 3,
        'stride': 1,
        'padding': (1, 1),
        'init_std': 0.01,
        'init_bias': bias,
        'local': False,
        'after': ('activation',),
        'pool_window': 3,
        'pool_stride': 2,
        'pool_partial': False,
        **({} if both is None else {'sees_both_towers': both}),
        **fields,
    }


def _hidden() -> dict[str, Any]:
    return {'features': 4096, 'sees_both_towers': True, 'init_std': 0.01, 'init_bias': 1.0}
