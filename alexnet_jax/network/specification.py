"""The `model` section of a configuration, which specifies the network layer by layer.

`configs/alexnet.py` says what each field means and gives the paper's values.
"""

import dataclasses
from typing import ClassVar

import numpy as np

from alexnet_jax.runtime.config import (
    NUMERICS,
    Rule,
    Section,
    above_zero,
    boolean,
    field,
    integer,
    is_integer,
    number,
    one_of,
    tuple_of,
)
from alexnet_jax.runtime.errors import UserError

CONVOLUTIONS = ('conv1', 'conv2', 'conv3', 'conv4', 'conv5', 'conv6')
OPERATIONS = ('activation', 'lrn', 'map_norm', 'bn', 'pool')  # that may follow a convolution

_odd = Rule(lambda v: is_integer(v) and v > 0 and v % 2 == 1, 'an odd integer above 0')
_classes = Rule(
    lambda v: is_integer(v) and (v == 0 or v >= 2),
    'an integer of at least 2, or 0 for the number of classes of the data',
)
_zeros_around = tuple_of(
    lambda v: is_integer(v) and v >= 0,
    2,
    words='two integers, the zero pixels before and after each spatial axis',
)
_after = Rule(
    lambda v: (
        isinstance(v, tuple)
        and all(v.count(operation) == 1 and operation in OPERATIONS for operation in v)
        and 'activation' in v
    ),
    "a tuple of 'activation' and any of 'lrn', 'map_norm', 'bn' and 'pool', each at most once, in "
    'the order in which they follow the convolution',
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FirstConvolution(Section):
    """conv1, whose input is the image; `features` counts both towers, and 0 omits the layer."""

    sees_both_towers: ClassVar[bool] = False

    features: int = field(integer(0))
    kernel: int = field(integer(1))
    stride: int = field(integer(1))
    padding: tuple[int, int] = field(_zeros_around)
    init_std: float = field(number(0.0))
    init_bias: float = field(number())
    local: bool = field(boolean)
    after: tuple[str, ...] = field(_after)
    pool_window: int = field(integer(1))
    pool_stride: int = field(integer(1))
    pool_partial: bool = field(boolean)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Convolution(FirstConvolution):
    """conv2 to conv6, whose inputs are the maps of their own tower or of both towers."""

    sees_both_towers: bool = field(boolean)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hidden(Section):
    """fc6 or fc7; `features` counts all units, and 0 omits the layer."""

    features: int = field(integer(0))
    sees_both_towers: bool = field(boolean)
    init_std: float = field(number(0.0))
    init_bias: float = field(number())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Output(Section):
    """fc8, which always sees both towers and has one unit per class."""

    init_std: float = field(number(0.0))
    init_bias: float = field(number())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Norm(Section):
    """The constants of a normalisation: a / (k + alpha * sum of n squares)^beta."""

    k: float = field(number(0.0))
    n: int = field(_odd)
    alpha: float = field(number(0.0))
    beta: float = field(number(0.0))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResponseNorm(Norm):
    """Local response normalisation (Paper 3.3), and its variants in other programs."""

    divide_alpha: bool = field(boolean)
    across_towers: bool = field(boolean)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchNormConfig(Section):
    """The constants of batch normalisation (Ioffe and Szegedy, 2015)."""

    momentum: float = field(number(0.0, below=1.0), off=0.9)
    epsilon: float = field(above_zero, off=1e-5)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig(Section):
    """The section `model`: everything that `AlexNet` needs except its devices."""

    num_classes: int = field(_classes)
    towers: int = field(one_of(1, 2))
    conv1: FirstConvolution
    conv2: Convolution
    conv3: Convolution
    conv4: Convolution
    conv5: Convolution
    conv6: Convolution
    fc6: Hidden
    fc7: Hidden
    fc8: Output
    lrn: ResponseNorm
    map_norm: Norm
    bn: BatchNormConfig = BatchNormConfig()
    activation: str = field(one_of('relu', 'tanh', 'sigmoid'))
    initializer: str = field(one_of('normal', 'xavier', 'he', 'pytorch'))
    dropout: float = field(number(0.0, 1.0))
    dropout_inverted: bool = field(boolean)
    dropout_inputs: bool = field(boolean)
    dtype: str = field(one_of('float32', 'bfloat16', 'float64'), role=NUMERICS, resume=False)
    precision: str = field(one_of('highest', 'high', 'default'), role=NUMERICS)
    forms: str = field(one_of('auto', 'plain', 'fast'), role=NUMERICS)

    @property
    def param_dtype(self) -> np.dtype:
        """The dtype of weights and logits: float64 for float64 arithmetic, else float32."""
        return np.dtype('float64' if self.dtype == 'float64' else 'float32')

    def check(self) -> None:
        """Raise UserError for layers that the towers do not divide, or if there is no conv1."""
        for name in CONVOLUTIONS:
            features = getattr(self, name).features
            if features % self.towers:
                raise UserError(
                    f'config.model.{name}.features = {features} must be a multiple of '
                    f'model.towers = {self.towers}'
                )
        if self.conv1.features == 0:
            raise UserError('config.model.conv1.features = 0 leaves no first layer; set it above 0')
