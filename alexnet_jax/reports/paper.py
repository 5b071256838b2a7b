"""The paper's numbers with their sources, for the tests and reports to compare against.

Paper: A. Krizhevsky, I. Sutskever, G. E. Hinton, "ImageNet Classification with Deep Convolutional
Neural Networks", NIPS 2012. The 2012 source is the code released by the Computer History Museum
(computerhistory/AlexNet-Source-Code).
"""

import math
import types
from collections.abc import Mapping
from typing import Any, NamedTuple


class Layer(NamedTuple):
    """One row of the layer table, for both towers together and one image."""

    output: tuple[int, ...]  # height, width, channels; or units
    parameters: int
    macs: int  # multiply-accumulates of one forward pass


# Paper 3.5 and Fig. 2. These are outputs before pooling, which follows conv1, conv2 and conv5.
# Fig. 2 prints 253,440 neurons for conv1; 55 x 55 x 96 = 290,400.
LAYERS = {
    'conv1': Layer((55, 55, 96), 34_944, 105_415_200),
    'conv2': Layer((27, 27, 256), 307_456, 223_948_800),
    'conv3': Layer((13, 13, 384), 885_120, 149_520_384),
    'conv4': Layer((13, 13, 384), 663_936, 112_140_288),
    'conv5': Layer((13, 13, 256), 442_624, 74_760_192),
    'fc6': Layer((4096,), 37_752_832, 37_748_736),
    'fc7': Layer((4096,), 16_781_312, 16_777_216),
    'fc8': Layer((1000,), 4_097_000, 4_096_000),
}
POOLED = {'pool1': (27, 27, 96), 'pool2': (13, 13, 256), 'pool5': (6, 6, 256)}

# Totals computed from the table above ("60 million parameters", Paper 1 and 4).
TOTAL_PARAMETERS = 60_965_224
TOTAL_PARAMETERS_ONE_TOWER = 62_378_344
TOTAL_PARAMETERS_WITH_CONV6 = 61_555_304
TOTAL_MACS = 724_406_816
TOTAL_MACS_ONE_TOWER = 1_135_256_096

# Layers at which the towers exchange activations: Paper 3.2 and Fig. 2.
EXCHANGES = ('conv3', 'fc6', 'fc7', 'fc8')

TRAINING_ERROR = 0.25  # the error at which Fig. 1 compares ReLU with tanh

# Below, each network of the paper as fields of a configuration, for the reports to compare with.

# A field whose value is a set may have any value of that set, or any at all if the set is empty.
ANY: frozenset = frozenset()


class Experiment(NamedTuple):
    """A network, or an ensemble, for which the paper or the 2012 logs give numbers."""

    name: str
    fields: Mapping[str, Any] | None = None  # changes to ALEXNET; None if no run can count
    note: str = ''  # why no run can count
    epochs: tuple[float, float] = (85.0, 95.0)  # "roughly 90", Paper 5; the author's 91 and 93
    pretrained_on: str = ''  # the data set of the run that gave the initial weights
    members: Mapping[str, int] = types.MappingProxyType({})  # of an ensemble: name -> number
    may_differ: tuple[str, ...] = ()  # fields that may differ, and that the report then names


class Claim(NamedTuple):
    """One number of the paper or of the 2012 logs; errors are in percent."""

    experiment: str
    metric: str  # a metric of the last evaluation, or EPOCHS
    paper: float | None
    run_2012: float | None  # the author's own run, 2012 source, layers/layer-params-*.cfg
    source: str
    less: str = ''  # if set, the number is the difference from the metric of this experiment
    times: str = ''  # if set, the number is the ratio to the metric of this experiment


EPOCHS = f'epochs to {100 * TRAINING_ERROR:g} % training error'


def _section(name: str, /, **fields: Any) -> dict[str, Any]:
    return {f'{name}.{field}': value for field, value in fields.items()}


def _convolution(name: str, /, **fields: Any) -> dict[str, Any]:
    """Return the fields of one convolution (Paper 3.4, 3.5 and 5)."""
    usual = {
        **{'kernel': 3, 'stride': 1, 'padding': (1, 1), 'init_std': 0.01, 'init_bias': 0.0},
        **{'local': False, 'after': ('activation',)},
        **{'pool_window': 3, 'pool_stride': 2, 'pool_partial': False},
    }
    return _section(f'model.{name}', **{**usual, **fields})


_NORM_POOL, _POOL = ('activation', 'lrn', 'pool'), ('activation', 'pool')
_ONE, _BOTH = {'sees_both_towers': False}, {'sees_both_towers': True}
_NORM = {'n': 5, 'beta': 0.75}
_HIDDEN = {'features': 4096, 'init_std': 0.01, 'init_bias': 1.0, **_BOTH}

# The network of Paper 3.5, trained on ILSVRC-2012 as in Paper 4 and 5: every field of the role
# MEANING that has no `off` value.
ALEXNET: dict[str, Any] = {
    **_section('model', num_classes=1000, towers=2, activation='relu', initializer='normal'),
    **_section('model', dropout=0.5, dropout_inverted=False, dropout_inputs=False),
    **_convolution('conv1', features=96, kernel=11, stride=4, padding=(0, 3), after=_NORM_POOL),
    **_convolution('conv2', features=256, kernel=5, padding=(2, 2), init_bias=1.0, **_ONE)
    | {'model.conv2.after': _NORM_POOL},
    **_convolution('conv3', features=384, **_BOTH),
    **_convolution('conv4', features=384, init_bias=1.0, **_ONE),
    **_convolution('conv5', features=256, init_bias=1.0, after=_POOL, **_ONE),
    **_convolution('conv6', features=0, init_bias=1.0, **_BOTH),
    **_section('model.fc6', **_HIDDEN),
    **_section('model.fc7', **_HIDDEN),
    **_section('model.fc8', init_std=0.01, init_bias=0.0),
    **_section('model.lrn', k=2.0, alpha=1e-4, divide_alpha=False, across_towers=False, **_NORM),
    **_section('model.map_norm', k=1.0, alpha=1e-3, **_NORM),  # of the 2012 source
    **_section('data', name='imagenet2012', train_split='train', eval_split='validation'),
    **_section('data', train_examples=1_281_167, eval_examples=50_000),
    **_section('augment', crop_px=224, random_crop=True, mirror=True, images_per_crop=1),
    **_section('augment', mean='at_crop', pixel_divisor=1.0, rotation_degrees=0.0),
    **_section('augment', colour_std=0.1, colour_divisor=1.0, colour_epochs=0.0),
    **_section('optim', learning_rate=0.01, momentum=0.9, weight_decay=0.0005),
    'optim.rate_inside_velocity': True,
    **_section('optim', lars_trust_coefficient=0.0, reference_batch=0, warmup_epochs=0.0),
    **_section('optim', lr_multipliers=(), weight_decay_multipliers=()),
    # `Experiment.pretrained_on` says on which data set the initial weights were trained.
    **_section('training', batch_size=128, init_from=ANY),
}
# The ways in which a network of the paper may be trained: as in its text, or as in the 2012 source.
RECIPES: tuple[Mapping[str, Any], ...] = (
    {},
    {
        'model.conv1.after': ('lrn', 'pool', 'activation'),
        'model.conv2.after': ('activation', 'lrn', 'map_norm', 'pool'),
        'model.lrn.divide_alpha': True,
        **{f'model.conv{n}.init_std': 0.03 for n in (3, 4, 5)},
        **{'augment.images_per_crop': 32, 'augment.mean': 'centre', 'augment.colour_divisor': 1.1},
        'augment.colour_epochs': ANY,
        'optim.lr_multipliers': (('bias', 2.0),),
        'optim.weight_decay_multipliers': (('bias', 0.0),),
    },
)

# The author's networks for CIFAR-10, layers-conv-local-13pct.cfg.
_POOLED = {'features': 64, 'kernel': 5, 'padding': (2, 2), 'after': _POOL, 'pool_partial': True}
_13_PERCENT = {
    **{'model.num_classes': 10, 'model.towers': 1, 'model.dropout': 0.0},
    **_convolution('conv1', init_std=1e-4, **_POOLED),
    **_convolution('conv2', **_POOLED),
    **_convolution('conv3', features=32, local=True, init_std=0.04),
    **_convolution('conv4', features=32, local=True, init_std=0.04),
    **{'model.conv5.features': 0, 'model.fc6.features': 0, 'model.fc7.features': 0},
    **{'data.name': 'cifar10', 'data.eval_split': 'test'},
    **{'data.train_examples': 50_000, 'data.eval_examples': 10_000},
    **{'augment.crop_px': 24, 'augment.colour_std': 0.0, 'optim.learning_rate': 0.001},
    **{'optim.weight_decay': 0.004, 'optim.lr_multipliers': (('bias', 2.0),)},
    'optim.weight_decay_multipliers': (('bias', 0.0), ('conv1', 0.0), ('conv2', 0.0)),
}
# The four-layer network of Fig. 1, which has "no regularization of any kind", and for which each
# learning rate was chosen for the fastest training.
_FIG_1 = {
    **_13_PERCENT,
    **{'augment.crop_px': 32, 'augment.random_crop': False, 'augment.mirror': False},
    **{'optim.learning_rate': ANY, 'optim.weight_decay': 0.0, 'optim.weight_decay_multipliers': ()},
}
_WIDTHS = tuple(f'model.conv{n}.features' for n in (1, 2, 3, 4))
_LEFT_OPEN = ('training.batch_size', *_WIDTHS)  # the paper does not give these for Fig. 1
_2010 = {
    'data.name': 'imagenet2010',
    'data.eval_split': 'test',
    'data.train_examples': 1_261_406,
    'data.eval_examples': 150_000,
}
_ONE_GPU = {
    **{'model.towers': 1, 'model.conv1.features': 48, 'model.conv2.features': 128},
    **{'model.conv3.features': 192, 'model.conv4.features': 192, 'model.conv5.features': 256},
}
_POOL_ONLY = frozenset({_POOL, ('pool', 'activation')})  # ReLU commutes with max-pooling
_CNN_STAR = '1 CNN*, conv6 and pre-trained on the Fall 2011 release'
_NO_LABELS = 'the labels of that test were never published'
_RELU, _TANH = (f'{unit}, four layers on CIFAR-10' for unit in ('ReLU', 'tanh'))
EXPERIMENTS = (
    Experiment('1 CNN, ILSVRC-2010 test', _2010),
    Experiment('1 CNN, ILSVRC-2012 validation', {}),
    Experiment('5 CNNs, ILSVRC-2012 validation', {}, members={'1 CNN, ILSVRC-2012 validation': 5}),
    Experiment('5 CNNs, ILSVRC-2012 test', note=_NO_LABELS),
    # The paper says neither how long it was fine-tuned nor with which learning rate.
    Experiment(
        _CNN_STAR,
        {'model.conv6.features': 256, 'optim.learning_rate': ANY},
        epochs=(0.0, math.inf),
        pretrained_on='imagenet_fall2011',
    ),
    Experiment(
        '7 CNNs*, ILSVRC-2012 validation',
        {},
        members={'1 CNN, ILSVRC-2012 validation': 5, _CNN_STAR: 2},
    ),
    Experiment('7 CNNs*, ILSVRC-2012 test', note=_NO_LABELS),
    Experiment(
        '1 CNN with conv6, Fall 2009 release, half for test',
        {
            **{'data.name': 'imagenet_fall2009', 'data.eval_split': 'test'},
            **{'data.train_examples': ANY, 'data.eval_examples': ANY},
            **{'model.num_classes': 10_184, 'model.conv6.features': 256},
        },
    ),
    Experiment('one GPU, ILSVRC-2010 test', {**_2010, **_ONE_GPU}),
    Experiment('no response norm', {'model.conv1.after': _POOL_ONLY, 'model.conv2.after': _POOL}),
    Experiment('no response norm after conv2', {'model.conv2.after': _POOL}),
    Experiment(
        'pooling that does not overlap',
        {
            **{f'model.conv{n}.pool_window': 2 for n in (1, 2, 5)},
            **{f'model.conv{n}.pool_partial': True for n in (1, 2, 5)},
            **{'model.conv2.padding': (1, 1), 'model.conv5.padding': (0, 0)},
        },
    ),
    Experiment(
        'towers that never communicate',
        {
            **{'model.conv2.features': 320, 'model.fc6.features': 8192},
            **{f'model.{layer}.sees_both_towers': False for layer in ('conv3', 'fc6', 'fc7')},
        },
    ),
    Experiment('no colour noise', {'augment.colour_std': 0.0}),
    # The paper does not say where the towers then communicate; here at fc6 (configs/no_conv3.py).
    Experiment('no conv3', {'model.conv3.features': 0}),
    Experiment('no conv4', {'model.conv4.features': 0}),
    Experiment('dropout, its iterations', note='no rule says when a run has converged'),
    Experiment(_RELU, _FIG_1, epochs=(0.0, math.inf), may_differ=('data.name', *_LEFT_OPEN)),
    Experiment(
        _TANH,
        {**_FIG_1, 'model.activation': 'tanh'},
        epochs=(0.0, math.inf),
        may_differ=('data.name', *_LEFT_OPEN),
    ),
    # The learning rate drops as in the author's files; training ended soon after the last drop.
    Experiment(
        'four layers on CIFAR-10, no norm',
        _13_PERCENT,
        epochs=(110.0, 140.0),
        may_differ=('data.name',),
    ),
    Experiment(
        'four layers on CIFAR-10, with norm',
        {
            **_13_PERCENT,
            'model.conv1.after': ('activation', 'pool', 'lrn'),
            **{'model.conv2.after': _NORM_POOL, 'model.conv3.features': 64},
            **{'model.lrn.k': 1.0, 'model.lrn.n': 9, 'model.lrn.alpha': 0.001},
            'model.lrn.divide_alpha': True,
        },
        epochs=(510.0, 540.0),
        may_differ=('data.name',),
    ),
)

_TOP1, _TOP5 = 'eval/top1_error_10_views', 'eval/top5_error_10_views'
_2010_TEST, _2012 = '1 CNN, ILSVRC-2010 test', '1 CNN, ILSVRC-2012 validation'
_SEVEN, _FALL_2009 = '7 CNNs*, ILSVRC-2012 validation', EXPERIMENTS[7].name
CLAIMS = (
    Claim(_2010_TEST, _TOP1, 37.5, 37.4727, 'Paper Table 1; #145-2010'),
    Claim(_2010_TEST, _TOP5, 17.0, 16.9987, 'Paper Table 1; #145-2010'),
    Claim(_2010_TEST, 'eval/top1_error', 39.0, 39.0247, 'Paper 6, footnote; #145-2010'),
    Claim(_2010_TEST, 'eval/top5_error', 18.3, 18.2953, 'Paper 6, footnote; #145-2010'),
    Claim(_2010_TEST, 'eval/loss', None, 1.706031, '#145-2010'),
    Claim(_2012, _TOP1, 40.7, 40.6640, 'Paper Table 2; #145'),
    Claim(_2012, _TOP5, 18.2, 18.2100, 'Paper Table 2; #145'),
    Claim('5 CNNs, ILSVRC-2012 validation', _TOP1, 38.1, None, 'Paper Table 2'),
    Claim('5 CNNs, ILSVRC-2012 validation', _TOP5, 16.4, None, 'Paper Table 2'),
    Claim('5 CNNs, ILSVRC-2012 test', _TOP5, 16.4, None, 'Paper Table 2'),
    Claim(_CNN_STAR, _TOP1, 39.0, 38.9900, 'Paper Table 2; #146-2012-2011'),
    Claim(_CNN_STAR, _TOP5, 16.6, 16.6220, 'Paper Table 2; #146-2012-2011'),
    Claim(_SEVEN, _TOP1, 36.7, None, 'Paper Table 2'),
    Claim(_SEVEN, _TOP5, 15.4, None, 'Paper Table 2'),
    Claim('7 CNNs*, ILSVRC-2012 test', _TOP5, 15.3, None, 'Paper Table 2'),
    Claim(_FALL_2009, _TOP1, 67.4, None, 'Paper 6'),
    Claim(_FALL_2009, _TOP5, 40.9, None, 'Paper 6'),
    Claim('one GPU, ILSVRC-2010 test', _TOP1, None, 39.1680, '#145-half'),
    Claim('one GPU, ILSVRC-2010 test', _TOP5, None, 18.2287, '#145-half'),
    Claim('one GPU, ILSVRC-2010 test', _TOP1, 1.7, 1.6953, 'Paper 3.2', _2010_TEST),
    Claim('one GPU, ILSVRC-2010 test', _TOP5, 1.2, 1.2300, 'Paper 3.2', _2010_TEST),
    Claim('no response norm', _TOP1, None, 42.0340, '#148'),
    Claim('no response norm', _TOP5, None, 19.3620, '#148'),
    Claim('no response norm', _TOP1, 1.4, 1.3700, 'Paper 3.3', _2012),
    Claim('no response norm', _TOP5, 1.2, 1.1520, 'Paper 3.3', _2012),
    Claim('no response norm after conv2', _TOP1, None, 40.4880, '#167'),
    Claim('no response norm after conv2', _TOP5, None, 18.1180, '#167'),
    Claim('pooling that does not overlap', _TOP1, None, 41.0580, '#147'),
    Claim('pooling that does not overlap', _TOP5, None, 18.5100, '#147'),
    Claim('pooling that does not overlap', _TOP1, 0.4, 0.3940, 'Paper 3.4', _2012),
    Claim('pooling that does not overlap', _TOP5, 0.3, 0.3000, 'Paper 3.4', _2012),
    Claim('towers that never communicate', _TOP1, None, 41.8280, '#150'),
    Claim('towers that never communicate', _TOP5, None, 19.3300, '#150'),
    Claim('no colour noise', _TOP1, 1.0, None, 'Paper 4.1, "over 1 %"', _2012),
    Claim('no conv3', _TOP1, 2.0, None, 'Paper 7, "about 2 %"', _2012),
    Claim('no conv4', _TOP1, 2.0, None, 'Paper 7, "about 2 %"', _2012),
    Claim('dropout, its iterations', 'times as many', 2.0, None, 'Paper 4.2, "roughly"'),
    Claim(_RELU, EPOCHS, None, None, 'Paper 3.1, Fig. 1'),
    Claim(_TANH, EPOCHS, None, None, 'Paper 3.1, Fig. 1'),
    Claim(_TANH, EPOCHS, 6.0, None, 'Paper 3.1, Fig. 1', times=_RELU),
    Claim('four layers on CIFAR-10, no norm', 'eval/top1_error', 13.0, None, 'Paper 3.3'),
    Claim('four layers on CIFAR-10, with norm', 'eval/top1_error', 11.0, None, 'Paper 3.3'),
)
