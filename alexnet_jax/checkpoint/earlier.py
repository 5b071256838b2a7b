"""Read configurations that were saved before some fields were renamed."""

import copy
from collections.abc import Mapping
from typing import Any

_OPTIM = {
    'drop_epochs': 'milestone_epochs',
    'plateau_evaluations': 'plateau_patience',
    'plateau_min_gain': 'plateau_min_delta',
    'plateau_drops': 'plateau_max_drops',
    'rate_factors': 'lr_multipliers',
    'decay_factors': 'weight_decay_multipliers',
    'lars_trust': 'lars_trust_coefficient',
}
_NO_POOLING = 3  # the present `pool_window` of a layer without pooling; it was 0


def in_present_names(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a saved configuration, nested, with the present names and values of its fields."""
    now = copy.deepcopy(dict(config))
    now['optim'] = {_OPTIM.get(name, name): value for name, value in now['optim'].items()}
    for name, layer in now['model'].items():
        if name.startswith('conv') and 'order' in layer:
            now['model'][name] = _convolution(layer)
    return now


def _convolution(layer: dict[str, Any]) -> dict[str, Any]:
    """Return a convolution with `after` in place of `order`, `lrn`, `map_norm` and window 0."""
    order, lrn, map_norm = (layer.pop(name, False) for name in ('order', 'lrn', 'map_norm'))
    follows = {
        'activation': ['activation'],
        'lrn': ['lrn'] * lrn + ['map_norm'] * map_norm,
        'pool': ['pool'] * (layer['pool_window'] > 0),
    }
    layer['after'] = [operation for part in order for operation in follows[part]]
    layer['pool_window'] = layer['pool_window'] or _NO_POOLING
    return layer
