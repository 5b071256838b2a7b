"""The paper's network on ImageNet, ILSVRC-2012, as described in the text of the paper.

    python -m alexnet_jax.main --config=configs/alexnet.py --data_dir=DIR

with one tower on each of two devices, as in 2012:

    python -m alexnet_jax.main --config=configs/alexnet.py --data_dir=DIR --config.parallel.model=2

Needs:    the data set `imagenet2012` that `python -m alexnet_jax.prepare imagenet` makes.
Cost:     900,821 steps of batch 128, 4.1356 GFLOP per image: 477 PFLOP in total. Not run yet.
Expected: the paper's validation errors with ten views are 40.7 % top-1 and 18.2 % top-5 (Table 2).

This file lists every field of a configuration with its meaning; the other files only change some of
them. "Paper 3.3" is a section of Krizhevsky, Sutskever and Hinton (2012). "2012 source" is the code
that the author released later; it settles what the paper leaves open.
"""

import ml_collections


def convolution(**fields) -> dict:
    """Return one convolution's fields; the values here are the defaults."""
    return {
        'features': 0,  # number of kernels of both towers together; 0: the layer is omitted
        'kernel': 3,  # height and width of a kernel
        'stride': 1,
        'padding': (1, 1),  # zero pixels before and after, on both spatial axes
        'init_std': 0.01,  # weights from N(0, 0.01), Paper 5
        'init_bias': 0.0,  # Paper 5: 1 in conv2, conv4 and conv5, otherwise 0
        'local': False,  # True: different kernels at each position (networks for CIFAR-10)
        # The operations after the convolution, in order: 'activation'; 'lrn', response
        # normalisation (Paper 3.3); 'map_norm', normalisation within a map (2012 source); 'bn',
        # batch normalisation (Ioffe and Szegedy, 2015), not the paper's; 'pool', max-pooling
        # (Paper 3.4).
        'after': ('activation',),
        'pool_window': 3,  # the side of the squares; used only if 'pool' is in `after`
        'pool_stride': 2,  # the distance between the squares
        'pool_partial': False,  # True: squares may reach beyond the right and lower edge
        **fields,
    }


def dense(**fields) -> dict:
    """Return the fields of fc6 or fc7."""
    return {
        'features': 4096,  # Paper 3.5; 0: the layer is omitted
        'sees_both_towers': True,  # Paper 3.2 and Fig. 2
        'init_std': 0.01,  # Paper 5
        'init_bias': 1.0,  # Paper 5: 1 in the "fully-connected hidden layers"
        **fields,
    }


def get_config() -> ml_collections.ConfigDict:
    """Return the paper's configuration."""
    config = ml_collections.ConfigDict()
    config.seed = 0  # determines the weights, data order, augmentation and dropout

    config.model = {
        'num_classes': 1000,  # 0: the number of classes of the data
        'towers': 2,  # Paper 3.2; 1: a network without the split
        # Paper 3.5. With 224 pixels, 55 positions need 3 more pixels: the 2012 source reads zeros
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
            sees_both_towers=False,  # Paper 3.2: only some layers see both towers
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
            'divide_alpha': False,  # True: alpha / n, as in the 2012 source, Caffe and PyTorch
            'across_towers': False,  # True: windows over both towers' maps, as in Caffe
        },
        'map_norm': {'k': 1.0, 'n': 5, 'alpha': 1e-3, 'beta': 0.75},  # 2012 source; alpha / n^2
        # Of batch normalisation: the running averages keep `momentum` of themselves in each step.
        'bn': {'momentum': 0.9, 'epsilon': 1e-5},
        'activation': 'relu',  # Paper 3.1; or 'tanh', 'sigmoid'
        # 'normal': N(0, init_std), Paper 5. 'xavier', 'he' and 'pytorch' ignore init_std: their
        # standard deviation depends on the number of inputs.
        'initializer': 'normal',
        'dropout': 0.5,  # in fc6 and fc7, Paper 4.2; outputs are halved at test time
        'dropout_inverted': False,  # True: scale outputs in training instead, as most programs do
        'dropout_inputs': False,  # True: drop inputs instead of outputs, as in torchvision
        'dtype': 'float32',  # of the arithmetic; 'bfloat16' (weights stay float32) or 'float64'
        # The precision of float32 products: 'highest' is float32 everywhere. With 'default' GPUs
        # use TF32 and TPUs bfloat16, which are faster but have mantissas of 10 and 7 bits. 'high'
        # is between the two on TPUs.
        'precision': 'highest',
        # The implementation of the layers: 'plain' uses XLA's operations, 'fast' computes the same
        # functions in a way that is faster on the CPU, and 'auto' is 'fast' on the CPU.
        'forms': 'auto',
    }
    config.parallel = {
        'data': -1,  # copies of the network; -1: as many as the devices allow
        'model': 1,  # devices for each copy; 2: one tower on each, as in 2012
        'backend': 'shard_map',  # or 'pmap'; both give the same numbers
        'cpu_devices': 0,  # N: the CPU as N devices, fastest with one per core; 0: what JAX finds
        'initialization_timeout_s': 300,  # how long to wait for all processes at the start
        'heartbeat_timeout_s': 100,  # a process that is silent for so long is lost, and all end
        'shutdown_timeout_s': 10,  # how long to wait for the other processes at the end
    }
    config.data = {
        'name': 'imagenet2012',  # a tfds data set, prepared as array_record
        'dir': '',  # '': --data_dir, or TFDS_DATA_DIR, or ~/tensorflow_datasets
        'train_split': 'train',
        'eval_split': 'validation',  # '': the first of 'test', 'validation' and 'val' that exists
        'image_shape': (256, 256, 3),  # Paper 2; (): the shape of the data
        'train_examples': 1_281_167,  # a data set with another number is refused; 0: any number
        'eval_examples': 50_000,
        'read_threads': 2,
        'prefetch_batches': 2,  # batches read in advance, on the host
    }
    config.augment = {
        'crop_px': 224,  # Paper 4.1
        'random_crop': True,  # in training; False: the centre
        # (least, largest): random crops of such a share of the image's area and of 3/4 to 4/3
        # of width to height, resized to crop_px (Szegedy, 2015), not the paper's. (): no resizing.
        'resized_crop_area': (),
        'mirror': True,  # in training and in ten views
        'images_per_crop': 1,  # consecutive images share crop and mirror; 2012 source: 32
        # What to subtract of the training set's mean image: 'at_crop', its pixels at the position
        # of the crop; 'centre', its centre for every crop, as in the 2012 source; 'channels', its
        # mean in each channel.
        'mean': 'at_crop',
        'pixel_divisor': 1.0,  # divides the pixels after the mean is subtracted; others use 58
        'colour_std': 0.1,  # PCA colour noise, Paper 4.1; 0: none
        'colour_divisor': 1.0,  # divides training images with colour noise; 2012 source: 1.1
        'colour_epochs': 0.0,  # number of epochs, from the start, with colour noise; 0: all
        # Random factors from 1 - x to 1 + x for the brightness, the contrast and the saturation of
        # training images, from today's recipes, not the paper. 0: none.
        'brightness': 0.0,
        'contrast': 0.0,
        'saturation': 0.0,
        # Each training image is mixed with its neighbour in the batch, not the paper's: in all
        # pixels by a share from Beta(alpha, alpha) (mixup, Zhang, 2018), or in a random box of such
        # a share (cutmix, Yun, 2019). 0: none; with both, either has probability 1/2. The labels
        # are mixed in the same shares; train/top1_error counts the image's own label.
        'mixup_alpha': 0.0,
        'cutmix_alpha': 0.0,
        'rotation_degrees': 0.0,  # largest random rotation, from popular articles, not the paper
    }
    config.optim = {  # Paper 5
        'learning_rate': 0.01,
        'reference_batch': 0,  # N: rates hold for batches of N and scale with the batch; 0: fixed
        'warmup_epochs': 0.0,  # all rates rise linearly over these epochs; 0: no warm-up
        'momentum': 0.9,
        'weight_decay': 0.0005,
        'rate_inside_velocity': True,  # Paper 5; False: as in optax.sgd and PyTorch
        'nesterov': False,  # True: Nesterov's momentum, not the paper's
        'lars_trust_coefficient': 0.0,  # LARS (You 2017), for example 0.001; 0: none
        # Multipliers of the rate and of the weight decay, for a layer, for all kernels or biases,
        # or for one parameter: (('bias', 2.0),) or (('conv1', 0.1), ('fc8.bias', 0.0)). If several
        # apply to a parameter, they are multiplied.
        'lr_multipliers': (),  # 2012 source: (('bias', 2.0),)
        # 2012 source: (('bias', 0.0),); Paper 5 decays every parameter.
        'weight_decay_multipliers': (),
        # DEVIATION: learning-rate drops by rule - the author divided the rate by 10 by hand when
        # the validation error stopped improving; here a rule does: 'plateau', 'steps', 'constant',
        # or, not the paper's, 'cosine' from the end of the warm-up to 0 at the end of the run
        'schedule': 'plateau',
        'drop_factor': 0.1,
        'milestone_epochs': (),  # for 'steps': the epochs of the drops
        'plateau_patience': 5,  # for 'plateau': evaluations without an improvement before a drop
        'plateau_min_delta': 0.001,  # for 'plateau': the least improvement of the top-1 error
        'plateau_max_drops': 3,  # for 'plateau': the largest number of drops
        # (epoch, layer, rate), for example ((25, 'all', 0.001),): from that epoch on the layer has
        # that rate instead of the schedule's; 'all' means every layer without its own event.
        'events': (),
    }
    config.training = {
        'batch_size': 128,  # Paper 5; of all devices together
        'accumulation_steps': 1,  # N: divide a batch into N parts, one after the other, for memory
        # This share of each label is spread evenly over all classes, in the loss of the training
        # (Szegedy, 2016), not the paper's. 0: none.
        'label_smoothing': 0.0,
        # Evaluations, and all who load the run, use an exponential moving average of the weights
        # that keeps this share of itself in each step, for example 0.999; not the paper's.
        # 'eval_raw/...' are the errors of the weights themselves. 0: no average.
        'ema_decay': 0.0,
        'total_epochs': 90.0,  # Paper 5
        'total_steps': 0,  # if above 0, this replaces total_epochs
        'log_every_steps': 100,
        'eval_every_epochs': 1.0,  # 0: only at the end
        # A step that takes longer ends the run with exit code 75. 0: no limit.
        'watchdog_s': 1800,
        # The same for what is slow: opening the data, each part of their statistics, compiling,
        # the first step, a batch of an evaluation, reading or writing a checkpoint. An hour is
        # ample for each of them on a busy file system, and costs less than waiting for the end of
        # the job. 0: no limit.
        'watchdog_slow_s': 3600,
        # A workdir, its checkpoints/STEP, or a weights file, whose parameters initialise the
        # network where they fit; the log names the others. A resumed run ignores it. CNN* was
        # initialised so (Paper 6).
        'init_from': '',
        # Compiled programs are kept in this directory for the next start; '': not kept. The next
        # start runs their code, so only you should be able to write to it.
        'compilation_cache_dir': '',
    }
    config.evaluation = {
        'batch_size': 128,  # of all devices together
        'views': 1,  # during training: 1, the centre crop, or 10 (Paper 4.1)
        'final_views': 10,  # after the last step and in --mode=evaluate
        'checkpoint': 'latest',  # the one that --mode=evaluate evaluates: 'latest' or 'best'
        # Workdirs, or their checkpoints/STEP, that --mode=evaluate evaluates as an ensemble.
        'ensemble': (),
        # 'mean' averages their softmax outputs (Paper 6); 'search' weights them to minimise the
        # loss on another split (2012 source).
        'ensemble_weights': 'mean',
        'ensemble_search_split': '',  # for 'search'
        'ensemble_dir': '',  # directory for errors, weights and all outputs (.npy); '': not written
        # Directory in which --mode=evaluate writes a report of each class and the confusion matrix,
        # as CSV and JSON; '': not written.
        'report_dir': '',
    }
    config.checkpoint = {  # a checkpoint is also saved after each evaluation
        'save_every_steps': 2000,  # 0: only after evaluations
        'keep_latest': 2,
        'keep_best': 1,  # by top-1 error of the centre crop
    }
    config.log = {
        'tensorboard': True,
        'progress_bar': True,  # only on a terminal
        'profile_steps': (0, 0),  # first and last step to profile; (0, 0): none
        # The run is also logged to this project of Weights & Biases, which needs `pip install
        # wandb` and `wandb login`, or WANDB_MODE=offline. It sends the metrics and the
        # configuration, without paths; a failure is a warning. '': not logged there.
        'wandb_project': '',
    }
    return config
