"""Predict with a trained network, on any number of devices of this machine."""

import collections
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import grain
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh, NamedSharding
from PIL import Image

from alexnet_jax.checkpoint.weights import TrainedNetwork
from alexnet_jax.inference import names, pixels
from alexnet_jax.inference.pixels import Picture
from alexnet_jax.inference.trained import read, require_fit
from alexnet_jax.input.augment import Augment
from alexnet_jax.input.batch import Batch, Statistics
from alexnet_jax.network.model import AlexNet
from alexnet_jax.network.parameters import split_network
from alexnet_jax.parallel import mesh as mesh_lib
from alexnet_jax.parallel.collectives import AXES
from alexnet_jax.preparation.images import Unreadable
from alexnet_jax.runtime import storage
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.training.evaluate import probability_step

_IN_FLIGHT = 2  # batches on the devices at a time


class Prediction(NamedTuple):
    """One class of a prediction."""

    label: int  # the index of the class
    name: str  # of the class; words for the synsets of ImageNet
    probability: float


def load(
    place: str | os.PathLike,
    checkpoint: str | int = 'latest',
    *,
    devices: Sequence[Any] | None = None,
    batch_size: int = 64,
) -> 'Network':
    """Load a trained network.

    Args:
      place: the workdir of a run, such as 'runs/digits', or a weights file.
      checkpoint: which one of the run: 'latest', 'best' or a step.
      devices: the JAX devices on which the network runs; by default all of this process. Each
        holds the whole network and takes its part of each batch.
      batch_size: the most images that are computed at a time.

    Raises UserError, in one line, if there is no sound checkpoint or file, or if its parts do not
    fit each other.
    """
    path = storage.resolve(epath.Path(place), 'the run or file')
    return Network(read(path, str(checkpoint)), devices=devices, batch_size=batch_size)


class Network:
    """A trained network that predicts.

    An image is the path of a file, an image of Pillow, or a NumPy array of uint8 [H, W], [H, W, 1],
    [H, W, 3] or [H, W, 4]. Images of any size are resized and cropped as `prepare` does. Where a
    method takes images, it takes a sequence of them, an array [N, H, W, C], or one image.

    Attributes:
      trained: the weights and what came with them, as NumPy arrays.
      config: the configuration of the run, `training.config.Config`.
      class_names: the names of the classes as in the data, in the order of the outputs.
      readable_names: the same in words, for the synsets of ImageNet.
      image_shape: (height, width, channels) of the images before the crop.
    """

    def __init__(
        self,
        trained: TrainedNetwork,
        *,
        devices: Sequence[Any] | None = None,
        batch_size: int = 64,
    ) -> None:
        self.trained = trained
        self.config = require_fit(trained)
        self.class_names = trained.class_names
        self.readable_names = names.readable(trained.class_names)
        self.image_shape: tuple[int, ...] = trained.statistics.mean_image.shape
        devices = list(devices or jax.local_devices())
        self._mesh = Mesh(np.asarray(devices).reshape(-1, 1, 1), AXES)
        self._batch_size = -(-max(batch_size, 1) // len(devices)) * len(devices)
        self._model = AlexNet(self.config.model, mesh_lib.collectives(self._mesh, 'shard_map'))
        self._augment = Augment(self.config.augment, 0)
        with self._precision():
            everywhere = NamedSharding(self._mesh, mesh_lib.REPLICATED)
            dtype = self.config.model.param_dtype
            statistics = Statistics(*(np.asarray(x, dtype) for x in trained.statistics))
            self._network, self._statistics = jax.device_put(
                (dict(trained.network), statistics), everywhere
            )

    @property
    def params(self) -> Mapping[str, Mapping[str, np.ndarray]]:
        """The weights as NumPy arrays, `{'conv1': {'kernel': ..., 'bias': ...}, ...}`."""
        return self.trained.network

    @functools.cached_property
    def activation_names(self) -> tuple[str, ...]:
        """The names that `activations` knows, from 'conv1' to 'fc8'."""
        return self._abstract_activations()[0]

    def predict(
        self,
        images: Picture | Sequence[Picture],
        top: int = 5,
        *,
        views: int = 1,
        unreadable: str = 'raise',
    ) -> list[Any]:
        """Return the most probable classes of each image, the most probable one first.

        Args:
          images: see the class.
          top: how many classes; fewer where the network has fewer.
          views: 1 for the centre crop, or 10 for the mean of ten views (Paper 4.1).
          unreadable: 'raise' to raise the error of an image that cannot be read; 'return' to put
            the error, an `Unreadable`, into the list in its place.

        Returns:
          For each image a list of `Prediction`. Of equal probabilities the lower label comes first.
        """
        if unreadable not in ('raise', 'return'):
            raise ValueError(f"unreadable must be 'raise' or 'return', not {unreadable!r}")
        outputs = self.stream(images, views=views)
        if unreadable == 'raise':
            outputs = map(_require_read, outputs)
        return [x if isinstance(x, Unreadable) else self.ranked(x, top) for x in outputs]

    def probabilities(self, images: Picture | Sequence[Picture], *, views: int = 1) -> np.ndarray:
        """Return the softmax outputs, float [N, classes]; `views` as in `predict`.

        Raises Unreadable for an image that cannot be read.
        """
        rows = [_require_read(output) for output in self.stream(images, views=views)]
        shape = (0, len(self.class_names))
        return np.stack(rows) if rows else np.zeros(shape, self.config.model.param_dtype)

    def activations(self, images: Picture | Sequence[Picture], name: str) -> np.ndarray:
        """Return the activations of a layer for the centre crops, such as 'conv1', 'pool5', 'fc7'.

        They are float [N, H, W, channels] for convolutional layers and [N, units] for others;
        'fc8' are the logits. The channels or units of the first tower come first. Raises UserError
        for a name that is not among `activation_names`, and Unreadable for an image that cannot be
        read.
        """
        rows = [_require_read(output) for output in self.stream(images, activation=name)]
        found = self._abstract_activations()[1][name]
        return np.stack(rows) if rows else np.zeros((0, *found.shape[1:]), found.dtype)

    def crops(self, images: Picture | Sequence[Picture]) -> np.ndarray:
        """Return the pixels that the network sees, float32 [N, S, S, C] from 0 to 255.

        They are the centre crops, of S = config.augment.crop_px, before the mean is subtracted.
        Raises Unreadable for an image that cannot be read.
        """
        given = _as_sequence(images)
        found = [_require_read(self._read(picture, k)) for k, picture in enumerate(given)]
        y, x, side = self._centre()
        shape = (0, side, side, self.image_shape[-1])
        crops = [image[y : y + side, x : x + side] for image in found]
        return np.asarray(np.stack(crops) if crops else np.zeros(shape), np.float32)

    def forward(self, crops: jax.Array) -> dict[str, jax.Array]:
        """Return the named activations of crops; a JAX function that can be differentiated.

        It computes on one device, in float32 with full precision, whatever the network was trained
        in.

        Args:
          crops: float32 [N, S, S, C], pixels as those of `crops`.

        Returns:
          The activations as in `activations`, all of them; 'fc8' are the logits.
        """
        model = dataclasses.replace(self.config.model, dtype='float32', precision='highest')
        network = jax.tree.map(np.float32, dict(self.trained.network))
        mean = np.asarray(self.trained.statistics.mean_image, np.float32)
        if self.config.augment.mean == 'channels':
            mean = np.mean(mean, axis=(0, 1), keepdims=True)
        else:
            y, x, side = self._centre()
            mean = mean[y : y + side, x : x + side]
        inputs = (crops - mean[None]) / np.float32(self.config.augment.pixel_divisor)
        return self._activations(AlexNet(model), network, inputs)

    def _read(self, picture: Picture, index: int) -> np.ndarray | Unreadable:
        """Return the pixels of an image, or the error, which names it."""
        try:
            return pixels.read(picture, self.image_shape, self.trained.preparation or {})
        except Unreadable as error:
            path = isinstance(picture, str | os.PathLike)
            where = os.fsdecode(picture) if path else f'image {index}'
            return Unreadable(error.kind, f'{where}: {error}')

    def _centre(self) -> tuple[int, int, int]:
        """Return the top, the left and the side of the centre crop, in pixels."""
        side = self.config.augment.crop_px
        return (self.image_shape[0] - side) // 2, (self.image_shape[1] - side) // 2, side

    def ranked(self, probabilities: np.ndarray, top: int = 5) -> list[Prediction]:
        """Return the most probable classes of one row of `probabilities`."""
        best = np.argsort(-probabilities, kind='stable')[:top]
        return [Prediction(int(k), self.readable_names[k], float(probabilities[k])) for k in best]

    def stream(
        self, images: Picture | Sequence[Picture], *, views: int = 1, activation: str = ''
    ) -> Iterator[np.ndarray | Unreadable]:
        """Yield the output of each image in turn: its probabilities, or the named activation.

        The images are read by several threads while the devices compute, and only a few batches are
        in memory at a time. An image that cannot be read yields the error.
        """
        if activation and activation not in self.activation_names:
            raise UserError(
                f'{activation} is not an activation of this network; it has '
                + ', '.join(self.activation_names)
            )
        if views not in (1, 10):
            raise UserError(f'views = {views} must be 1 or 10')
        step = self._step(activation) if activation else self._step('', views)
        return self._stream(_as_sequence(images), step)

    def _stream(
        self, images: Sequence[Picture], step: Callable[..., Any]
    ) -> Iterator[np.ndarray | Unreadable]:
        pending: collections.deque = collections.deque()
        for entries in self._batches(images):
            pending.append((entries, self._run(step, entries)))
            if len(pending) > _IN_FLIGHT:
                yield from _in_order(*pending.popleft())
        while pending:
            yield from _in_order(*pending.popleft())

    def _batches(self, images: Sequence[Picture]) -> Iterator[list[np.ndarray | Unreadable]]:
        """Yield the pixels, or errors, of a batch of images at a time."""

        def read(index: int) -> np.ndarray | Unreadable:
            return self._read(images[index], index)

        threads = len(os.sched_getaffinity(0))
        options = grain.ReadOptions(threads, prefetch_buffer_size=2 * self._batch_size)
        entries: list[np.ndarray | Unreadable] = []
        if len(images) <= 1:  # no threads for one image
            entries = [read(index) for index in range(len(images))]
        else:
            for entry in grain.MapDataset.range(len(images)).map(read).to_iter_dataset(options):
                entries.append(entry)
                if len(entries) == self._batch_size:
                    yield entries
                    entries = []
        if entries:
            yield entries

    def _run(self, step: Callable[..., Any], entries: Sequence[np.ndarray | Unreadable]) -> Any:
        """Start to compute a batch; return the outputs on the devices, with rows of padding."""
        found = [entry for entry in entries if not isinstance(entry, Unreadable)]
        if not found:
            return np.zeros(0)
        # Powers of two, so that a few compilations serve batches of any length.
        size = min(1 << (len(found) - 1).bit_length(), self._batch_size)
        size = -(-size // self._mesh.size) * self._mesh.size
        images = np.zeros((size, *self.image_shape), np.uint8)
        images[: len(found)] = found
        batch = Batch(images, np.zeros(size, np.int32), np.ones(size, bool))
        with self._precision():
            return step(self._network, batch, self._statistics)

    @functools.cache  # noqa: B019 - a network has few of them
    def _step(self, activation: str, views: int = 1) -> Callable[..., Any]:
        """Return the jitted function `(network, batch, statistics) -> [rows, ...]`."""
        model, augment = self._model, self._augment

        def probabilities(network: Any, batch: Batch, statistics: Statistics) -> jax.Array:
            outputs = probability_step(
                network, batch, statistics, model=model, augment=augment, views=views
            )
            return outputs['_10_views' if views == 10 else '']

        def activations(network: Any, batch: Batch, statistics: Statistics) -> jax.Array:
            corners, mirrors = augment.view_corners(batch.images.shape[1:], 1)
            crops = augment.view(batch.images, statistics, corners[0], mirrors[0])
            seen = self._activations(model, network, crops)
            return seen[activation].astype(self.config.model.param_dtype)  # it may be bfloat16

        return mesh_lib.per_device(
            activations if activation else probabilities,
            self._mesh,
            'shard_map',
            in_specs=(
                mesh_lib.REPLICATED,
                Batch(mesh_lib.IMAGES, mesh_lib.LABELS, mesh_lib.LABELS),
                mesh_lib.REPLICATED,
            ),
            out_specs=mesh_lib.LABELS,
        )

    def _precision(self) -> Any:
        """Return a context in which arrays of the network's dtype exist."""
        return jax.enable_x64(self.config.model.dtype == 'float64')

    def _abstract_activations(self) -> tuple[tuple[str, ...], Mapping[str, Any]]:
        """Return the names in the order of the network, and each one's shape and dtype."""
        side, order = self.config.augment.crop_px, []

        def apply(network: Any, crops: jax.Array) -> dict[str, jax.Array]:
            seen = self._activations(AlexNet(self.config.model), network, crops)
            order.extend(seen)  # JAX sorts the keys of what is returned
            return {name: x.astype(self.config.model.param_dtype) for name, x in seen.items()}

        with self._precision():
            crop = jax.ShapeDtypeStruct((1, side, side, self.image_shape[-1]), np.float32)
            shapes = jax.eval_shape(apply, dict(self.trained.network), crop)
        return tuple(order), shapes

    @staticmethod
    def _activations(model: AlexNet, network: Any, crops: jax.Array) -> dict[str, jax.Array]:
        rows = jnp.arange(crops.shape[0], dtype=jnp.int32)
        outputs: Any = model.apply(split_network(network), crops, rows)
        return outputs[1]


def _as_sequence(images: Picture | Sequence[Picture]) -> Sequence[Picture]:
    """Return a sequence of images; one image becomes a sequence of one."""
    one = isinstance(images, str | os.PathLike | Image.Image)
    if one or (isinstance(images, np.ndarray) and images.ndim < 4):
        return [images]  # pyright: ignore[reportReturnType]
    return images if isinstance(images, np.ndarray) else list(images)  # pyright: ignore


def _in_order(
    entries: Sequence[np.ndarray | Unreadable], outputs: Any
) -> Iterator[np.ndarray | Unreadable]:
    """Yield the output of each entry in turn, and the errors in their places."""
    rows = iter(np.asarray(outputs))
    for entry in entries:
        yield entry if isinstance(entry, Unreadable) else next(rows)


def _require_read(output: np.ndarray | Unreadable) -> np.ndarray:
    if isinstance(output, Unreadable):
        raise output
    return output
