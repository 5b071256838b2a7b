"""The paper's network on ImageNet, ILSVRC-2012, as the text of the paper has it.

    python -m alexnet_jax.main --config=configs/alexnet.py --data_dir=DIR

with one tower on each of two devices, as in 2012:

    python -m alexnet_jax.main --config=configs/alexnet.py --data_dir=DIR --config.parallel.model=2

Needs:    the data set `imagenet2012` that `python -m alexnet_jax.prepare imagenet` makes.
Cost:     900,821 steps of batch 128, 4.1356 GFLOP an image: 477 PFLOP in all. Not run here yet.
Expected: the paper's validation errors with ten views are 40.7 % top-1 and 18.2 % top-5 (Table 2).

Every field of a configuration stands here, once, with its meaning; the other files name
differences. "Paper 3.3" is a section of Krizhevsky, Sutskever and Hinton (2012); "2012 source" is
the code that the author released later, for what the paper leaves open.
"""

import ml_collections


def convolution(**fields) -> dict:
    """Return one convolution's fields; the values here hold where a layer names no other."""
    return {
        'features': 0,  # kernels of both towers together; 0: no such layer
        'kernel': 3,  # height and width of a kernel
        'stride': 1,
        'padding': (1, 1),  # zero pixels before and after, on both spatial axes
        'init_std': 0.01,  # weights from N(0, 0.01), Paper 5
        'init_bias': 0.0,  # Paper 5: 1 in conv2, conv4, conv5, else 0
        'local': False,  # kernels of its own at each place, in the author's CIFAR-10 networks
        # What follows the convolution, first to last: 'activation'; 'lrn', response normalisation
        # (Paper 3.3); 'map_norm', normalisation within a map (2012 source); 'pool', max-pooling.
        'after': ('activation',),
        'pool_window': 3,  # where 'pool' follows: squares of 3 x 3, 2 apart, Paper 3.4
        'pool_stride': 2,
        'pool_partial': False,  # squares that reach beyond the lower and right edge, 2012 source
        **fields,
    }


def dense(**fields) -> dict:
    """Return the fields of fc6 or fc7."""
    return {
        'features': 4096,  # Paper 3.5; 0: no such layer
        'sees_both_towers': True,  # Paper 3.2 and Fig. 2
        'init_std': 0.01,  # Paper 5
        'init_bias': 1.0,  # Paper 5: of the "fully-connected hidden layers"
        **fields,
    }


def get_config() -> ml_collections.ConfigDict:
    """Return the paper's configuration."""
    config = ml_collections.ConfigDict()
    config.seed = 0  # weights, data order, augmentation and dropout all follow from it

    config.model = {
        'num_classes': 1000,  # 0: as many as the data have
        'towers': 2,  # Paper 3.2; 1: a network without the split
        # Paper 3.5. 224 pixels give 55 positions only with 3 more: the 2012 source reads zeros
        # beyond the right and lower edge.
        'conv1': convolution(
            features=96,
            kernel=11,
            stride=4,
            padding=(0, 3),
            after=('activation', 'lrn', 'pool'),  # Paper 3.5
        ),
        'conv2': convolution(
            features=256,
            kernel=5,
            padding=(2, 2),
            sees_both_towers=False,  # Paper 3.2: which layers take both towers' maps
            init_bias=1.0,
            after=('activation', 'lrn', 'pool'),
        ),
        'conv3': convolution(features=384, sees_both_towers=True),
        'conv4': convolution(features=384, sees_both_towers=False, init_bias=1.0),
        'conv5': convolution(
            features=256, sees_both_towers=False, init_bias=1.0, after=('activation', 'pool')
        ),
        'conv6': convolution(sees_both_towers=True, init_bias=1.0),  # 256 features in CNN*, Paper 6
        'fc6': dense(),
        'fc7': dense(),
        # Paper 5 gives the "fully-connected hidden layers" bias 1; fc8 is no hidden layer.
        'fc8': {'init_std': 0.01, 'init_bias': 0.0},
        'lrn': {
            **{'k': 2.0, 'n': 5, 'alpha': 1e-4, 'beta': 0.75},  # Paper 3.3
            'divide_alpha': False,  # alpha / n, as the 2012 source, Caffe and PyTorch
            'across_towers': False,  # windows over both towers' maps, as Caffe
        },
        'map_norm': {'k': 1.0, 'n': 5, 'alpha': 1e-3, 'beta': 0.75},  # 2012 source; alpha / n^2
        'activation': 'relu',  # Paper 3.1; or 'tanh', 'sigmoid'
        # 'normal': N(0, init_std), Paper 5. 'xavier', 'he', 'pytorch': the width follows from the
        # number of inputs.
        'initializer': 'normal',
        'dropout': 0.5,  # in fc6 and fc7, Paper 4.2; outputs times 0.5 at test time
        'dropout_inverted': False,  # times 2 in training instead, as most do
        'dropout_inputs': False,  # of the inputs of fc6 and fc7, as torchvision; else their outputs
        'dtype': 'float32',  # of the arithmetic, or 'bfloat16' with float32 weights, or 'float64'
        # Of float32 products: 'highest' is float32 everywhere; by 'default' GPUs take TF32 and TPUs
        # bfloat16, which is faster and rounds to 10 and 7 bits; 'high' lies between, on TPUs.
        'precision': 'highest',
        # Of the layers: 'plain' as XLA has them, 'fast' the same functions as the CPU likes them;
        # 'auto': fast on the CPU.
        'forms': 'auto',
    }
    config.parallel = {
        'data': -1,  # copies of the network; -1: as many as the devices allow
        'model': 1,  # devices for one copy; 2: one tower on each, as in 2012
        'backend': 'shard_map',  # what runs the step on each device; or 'pmap', the same numbers
        'cpu_devices': 0,  # N: the CPU as N devices, one a core is fastest; 0: what JAX finds
        'initialization_timeout_s': 300,  # how long to wait for all of several processes
        'heartbeat_timeout_s': 20,  # one without a sign of life for so long is lost: all end
        'shutdown_timeout_s': 10,  # how long to wait for the others at the end
    }
    config.data = {
        'name': 'imagenet2012',  # a tfds data set prepared as array_record
        'dir': '',  # '': --data_dir, else TFDS_DATA_DIR, else ~/tensorflow_datasets
        'train_split': 'train',
        'eval_split': 'validation',  # '': 'test', 'validation' or 'val', whichever there is
        'image_shape': (256, 256, 3),  # Paper 2; (): what the data has
        'train_examples': 1_281_167,  # a data set with another count is refused; 0: any
        'eval_examples': 50_000,
        'read_threads': 2,
        'prefetch_batches': 2,  # read ahead, on the host
    }
    config.augment = {
        'crop_px': 224,  # Paper 4.1
        'random_crop': True,  # in training; else the centre
        'mirror': True,  # in training, and in ten views
        'images_per_crop': 1,  # consecutive images with one crop and one mirror; 2012 source: 32
        # The training set's mean image: 'at_crop', its pixels where the crop lies; 'centre', its
        # centre for every crop, as in the 2012 source; 'channels', one number a channel.
        'mean': 'at_crop',
        'pixel_divisor': 1.0,  # of the pixels less the mean; 58, their deviation, elsewhere
        'colour_std': 0.1,  # PCA colour, Paper 4.1; 0: none
        'colour_divisor': 1.0,  # of training images while coloured; 2012 source: 1.1
        'colour_epochs': 0.0,  # colour noise in so many epochs from the start; 0: in all
        'rotation_degrees': 0.0,  # by up to so much either way; popular articles, not the paper
    }
    config.optim = {  # Paper 5
        'learning_rate': 0.01,
        'reference_batch': 0,  # N: rates are for batches of N, others scale them; 0: rates as given
        'warmup_epochs': 0.0,  # every rate rises from near 0 over so many epochs; 0: none
        'momentum': 0.9,
        'weight_decay': 0.0005,
        'rate_inside_velocity': True,  # as Paper 5; outside: optax.sgd and PyTorch
        'lars_trust_coefficient': 0.0,  # LARS (You 2017), for example 0.001; 0: none
        # Multipliers of the rate and of the decay of a layer, of all kernels or biases, or of one
        # parameter: (('bias', 2.0),), (('conv1', 0.1), ('fc8.bias', 0.0)). All that name a
        # parameter apply.
        'lr_multipliers': (),  # 2012 source: (('bias', 2.0),)
        # 2012 source: (('bias', 0.0),); Paper 5 decays every parameter.
        'weight_decay_multipliers': (),
        # DEVIATION: learning-rate drops by rule - the author divided by 10 by hand when the
        # validation error stopped improving; here a rule does: 'plateau', 'steps' or 'constant'
        'schedule': 'plateau',
        'drop_factor': 0.1,
        'milestone_epochs': (),  # for 'steps'
        'plateau_patience': 5,  # for 'plateau': evaluations without an improvement before a drop
        'plateau_min_delta': 0.001,  # of the top-1 error: less is no improvement
        'plateau_max_drops': 3,  # at most
        # (epoch, layer, rate): from that epoch on the layer has that rate, whatever the schedule
        # says; 'all' is every layer without an event of its own: ((25, 'all', 0.001),).
        'events': (),
    }
    config.training = {
        'batch_size': 128,  # Paper 5; of all devices together
        'accumulation_steps': 1,  # parts of a batch computed one after the other, to save memory
        'total_epochs': 90.0,  # Paper 5
        'total_steps': 0,  # 0: the epochs decide
        'log_every_steps': 100,
        'eval_every_epochs': 1.0,  # 0: at the end only
        # A step that takes longer ends the run, exit code 75; ten times as long for the first step,
        # a batch of an evaluation and a save. 0: never.
        'watchdog_s': 1800,
        # A workdir, or its checkpoints/STEP: step 0 begins with what fits of its parameters, the
        # log names the rest; a resumed run ignores it. So began CNN*, Paper 6.
        'init_from': '',
        # Compiled programs are kept here for the next start; '': nowhere. They are code that the
        # next start runs: a directory that only you can write to.
        'compilation_cache_dir': '',
    }
    config.evaluation = {
        'batch_size': 128,  # of all devices together
        'views': 1,  # during training: 1, the centre crop, or 10 (Paper 4.1)
        'final_views': 10,  # after the last step and in --mode=evaluate
        'checkpoint': 'latest',  # what --mode=evaluate takes: 'latest' or 'best'
        # Workdirs, or their checkpoints/STEP, that --mode=evaluate takes as one: their softmax
        # outputs averaged (Paper 6), or weighted to the least loss on another split (2012 source).
        'ensemble': (),
        'ensemble_weights': 'mean',  # or 'search'
        'ensemble_search_split': '',  # for 'search'
        'ensemble_dir': '',  # errors, weights and all outputs (.npy) go there; '': nowhere
    }
    config.checkpoint = {  # one is saved after each evaluation, too
        'save_every_steps': 2000,  # 0: after evaluations only
        'keep_latest': 2,
        'keep_best': 1,  # by top-1 error of the centre crop
    }
    config.log = {
        'tensorboard': True,
        'progress_bar': True,  # on a terminal only
        'profile_steps': (0, 0),  # first and last step of a profile; (0, 0): none
    }
    return config
