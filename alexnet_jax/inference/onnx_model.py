"""Export a trained network as ONNX, for other programs: onnxruntime, OpenCV, browsers.

The model takes `images`, uint8 [N, height, width, channels] of the size that the data had, crops
their centre and gives `logits` and `probabilities`, float32 [N, classes]. Its metadata have
`class_names` as a JSON list.
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from alexnet_jax import __version__
from alexnet_jax.checkpoint.weights import TrainedNetwork
from alexnet_jax.inference import channels_first
from alexnet_jax.inference.pytorch import check_expressible
from alexnet_jax.inference.trained import require_fit
from alexnet_jax.network.specification import CONVOLUTIONS, FirstConvolution
from alexnet_jax.network.variants import output_name
from alexnet_jax.runtime import storage
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.training.config import Config

SUFFIX = '.onnx'
_OPSET = 17
_IR = 8  # of that operator set, so that older runtimes read the model
_ACTIVATIONS = {'relu': 'Relu', 'tanh': 'Tanh', 'sigmoid': 'Sigmoid'}


def write(path: epath.Path, trained: TrainedNetwork) -> None:
    """Write the model, atomically; it computes in float32.

    Raises UserError if `onnx` is not installed, and for a network with an operation that ONNX does
    not have, naming its field.
    """
    try:
        import onnx
    except ImportError as error:
        raise UserError('the format onnx needs the package onnx; pip install onnx') from error
    config = require_fit(trained)
    check_expressible(config.model, 'ONNX')
    graph = _Graph(onnx.helper, onnx.numpy_helper)
    logits = _network(graph, trained, config)
    graph.add('Identity', [logits], output='logits')
    graph.add('Softmax', [logits], output='probabilities', axis=-1)
    helper, kind = onnx.helper, onnx.TensorProto
    classes = config.model.num_classes
    shape = ['N', *trained.statistics.mean_image.shape]
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            'alexnet_jax',
            [helper.make_tensor_value_info('images', kind.UINT8, shape)],
            [
                helper.make_tensor_value_info(name, kind.FLOAT, ['N', classes])
                for name in ('logits', 'probabilities')
            ],
            graph.arrays,
        ),
        producer_name='alexnet_jax',
        producer_version=__version__,
        opset_imports=[helper.make_opsetid('', _OPSET)],
        ir_version=_IR,
    )
    helper.set_model_props(model, {'class_names': json.dumps(trained.class_names)})
    onnx.checker.check_model(model, full_check=True)
    with storage.writing(path):
        storage.replace(path, model.SerializeToString())


class _Graph:
    """The nodes and constant arrays of a model while it is built; outputs are known by names."""

    def __init__(self, helper: Any, numpy_helper: Any) -> None:
        self._helper, self._numpy = helper, numpy_helper
        self.nodes: list[Any] = []
        self.arrays: list[Any] = []

    def array(self, name: str, value: Any, dtype: Any = np.float32) -> str:
        """Add a constant and return its name."""
        self.arrays.append(self._numpy.from_array(np.ascontiguousarray(value, dtype), name))
        return name

    def add(self, kind: str, inputs: Sequence[str], *, output: str, **attributes: Any) -> str:
        """Add a node with one output and return the output's name."""
        self.nodes.append(self._helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def split(self, x: str, outputs: Sequence[str]) -> None:
        """Split the channels into as many equal parts as there are outputs."""
        self.nodes.append(self._helper.make_node('Split', [x], outputs, name=x + '.split', axis=1))


def _network(graph: _Graph, trained: TrainedNetwork, config: Config) -> str:
    """Add the layers in their order, and return the name of the logits."""
    model = config.model
    weights = channels_first.to_channels_first(trained.network, model)

    def parameters(layer: str, *leaves: str) -> list[str]:
        return [graph.array(f'{layer}.{leaf}', weights[layer][leaf]) for leaf in leaves]

    x = _crop(graph, trained, config)
    for name in CONVOLUTIONS:
        layer = getattr(model, name)
        if layer.features == 0:
            continue
        before, after = layer.padding
        own = name != 'conv1' and not layer.sees_both_towers
        x = graph.add(
            'Conv',
            [x, *parameters(name, 'kernel', 'bias')],
            output=f'{name}.sum',
            group=model.towers if own else 1,
            kernel_shape=[layer.kernel] * 2,
            strides=[layer.stride] * 2,
            pads=[before, before, after, after],
        )
        for operation in layer.after:
            output = output_name(name, layer.after, operation)
            if operation == 'activation':
                x = graph.add(_ACTIVATIONS[model.activation], [x], output=output)
            elif operation == 'pool':
                x = _pool(graph, x, layer, output)
            elif operation == 'bn':
                inputs = [x, *parameters(output, 'scale', 'bias', 'mean', 'var')]
                epsilon = model.bn.epsilon
                x = graph.add('BatchNormalization', inputs, output=output, epsilon=epsilon)
            else:
                x = _response_norm(graph, x, config, output)
    x = graph.add('Flatten', [x], output='maps', axis=1)
    for name in ('fc6', 'fc7'):
        if getattr(model, name).features == 0:
            continue
        if model.dropout_inputs:
            x = _kept_share(graph, x, config, f'{name}.inputs')
        inputs = [x, *parameters(name, 'kernel', 'bias')]
        x = graph.add('Gemm', inputs, output=f'{name}.sum', transB=1)
        x = graph.add(_ACTIVATIONS[model.activation], [x], output=f'{name}.activation')
        x = x if model.dropout_inputs else _kept_share(graph, x, config, name)
    return graph.add('Gemm', [x, *parameters('fc8', 'kernel', 'bias')], output='fc8', transB=1)


def _crop(graph: _Graph, trained: TrainedNetwork, config: Config) -> str:
    """Subtract the mean, take the centre, divide, and put the channels first."""
    augment, mean = config.augment, trained.statistics.mean_image
    if augment.mean == 'channels':
        mean = mean.mean(axis=(0, 1), keepdims=True)
    corner = [(side - augment.crop_px) // 2 for side in trained.statistics.mean_image.shape[:2]]
    x = graph.add('Cast', ['images'], output='pixels', to=1)  # float32
    x = graph.add('Sub', [x, graph.array('mean', mean)], output='centred')
    limits = {
        'starts': corner,
        'ends': [begin + augment.crop_px for begin in corner],
        'axes': [1, 2],
    }
    x = graph.add(
        'Slice', [x, *(graph.array(k, v, np.int64) for k, v in limits.items())], output='crop'
    )
    x = graph.add('Div', [x, graph.array('divisor', augment.pixel_divisor)], output='scaled')
    return graph.add('Transpose', [x], output='input', perm=[0, 3, 1, 2])


def _pool(graph: _Graph, x: str, layer: FirstConvolution, output: str) -> str:
    return graph.add(
        'MaxPool',
        [x],
        output=output,
        kernel_shape=[layer.pool_window] * 2,
        strides=[layer.pool_stride] * 2,
        ceil_mode=int(layer.pool_partial),
    )


def _response_norm(graph: _Graph, x: str, config: Config, output: str) -> str:
    """Normalise within each tower or across both; ONNX divides alpha by n."""
    norm = config.model.lrn
    attributes = {
        'size': norm.n,
        'alpha': norm.alpha * (1 if norm.divide_alpha else norm.n),
        'beta': norm.beta,
        'bias': norm.k,
    }
    if norm.across_towers or config.model.towers == 1:
        return graph.add('LRN', [x], output=output, **attributes)
    towers = [f'{output}.tower{i}' for i in range(config.model.towers)]
    graph.split(x, towers)
    normed = [graph.add('LRN', [t], output=f'{t}.norm', **attributes) for t in towers]
    return graph.add('Concat', normed, output=output, axis=1)


def _kept_share(graph: _Graph, x: str, config: Config, output: str) -> str:
    """Multiply by the share of units that dropout keeps in training (Paper 4.2)."""
    share = 1.0 if config.model.dropout_inverted else 1 - config.model.dropout
    return graph.add('Mul', [x, graph.array(f'{output}.share', share)], output=output)
