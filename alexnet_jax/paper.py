"""The paper's numbers, each with its place: what tests and reports compare against.

Paper: A. Krizhevsky, I. Sutskever, G. E. Hinton, "ImageNet Classification with Deep Convolutional
Neural Networks", NIPS 2012. The 2012 source is the code released by the Computer History Museum
(computerhistory/AlexNet-Source-Code).
"""

from typing import NamedTuple


class Layer(NamedTuple):
    """One row of the layer table: both towers together, one image."""

    output: tuple[int, ...]  # height, width, channels; or units
    parameters: int
    macs: int  # multiply-accumulates of one forward pass


# Paper 3.5 and Fig. 2. The convolution's own output; pooling after conv1, conv2 and conv5.
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

# Paper Table 2, ILSVRC-2012 validation, one CNN, ten views.
TOP1_ERROR_10_VIEWS = 0.407
TOP5_ERROR_10_VIEWS = 0.182
# The run behind it: 2012 source, layers/layer-params-*.cfg, #145.
TOP1_ERROR_10_VIEWS_2012_RUN = 0.406640
TOP5_ERROR_10_VIEWS_2012_RUN = 0.182100
