"""Choose the plain or the fast form of each layer for each platform, from measurements.

The plain form of a layer is XLA's own operation. The fast form computes the same function, up to
rounding, in a way that suits one platform better.
"""

import jax

# {layer: {platform: form}}; other platforms use the plain form. No GPU or TPU has been measured
# yet. The times are of one forward and backward pass on 2 Zen 4 cores.
_FORMS = {
    # A step of the paper's network takes 1.1 times as long if the batch is not divided. One core
    # computes the kernel gradients of conv1, conv2 and conv3, batch 128, at 70, 93 and 90 GFLOP/s
    # in parts that fit its cache, and at 15, 35 and 42 GFLOP/s in one piece.
    'convolution': {'cpu': 'fast'},
    'lrn': {'cpu': 'fast'},  # lrn1 of batch 64: 0.11 s; plain 0.49 s
    'pool': {'cpu': 'fast'},  # pool1 of batch 64: 0.037 s; plain 0.24 s
}


def is_fast(layer: str, forms: str) -> bool:
    """Say whether the fast form of 'convolution', 'lrn' or 'pool' runs on this platform.

    `forms` is the field of the `model` section: 'auto' uses the table, while 'plain' and 'fast'
    override it for all layers.
    """
    form = _FORMS[layer].get(jax.default_backend(), 'plain') if forms == 'auto' else forms
    return form == 'fast'
