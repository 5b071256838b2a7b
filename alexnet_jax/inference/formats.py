"""Read and write trained networks in the formats of this and of other programs."""

import dataclasses
import hashlib
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from alexnet_jax.checkpoint import weights
from alexnet_jax.checkpoint.weights import TrainedNetwork
from alexnet_jax.inference import caffe, onnx_model, onnx_zoo, pytorch, stablehlo
from alexnet_jax.inference.trained import read as read_trained
from alexnet_jax.inference.trained import require_fit
from alexnet_jax.preparation import imagenet
from alexnet_jax.runtime import storage
from alexnet_jax.runtime.errors import UserError

OURS = 'alexnet_jax'
READS = (OURS, 'pytorch', 'torchvision', 'caffe', 'onnx')
WRITES = (OURS, 'pytorch', 'stablehlo', 'onnx')
DTYPES = ('float32', 'float16')
SUFFIX = weights.SUFFIX
_WITH_A_MEAN = {'caffe': caffe, 'onnx': onnx_zoo}
_EXPORTS = {'stablehlo': stablehlo, 'onnx': onnx_model}

_PICKLES = ('.pth', '.pt', '.pkl', '.pickle', '.ckpt')
_MADE_BY_PICKLE = (b'\x80\x02', b'\x80\x03', b'\x80\x04', b'\x80\x05', b'PK\x03\x04')
_CHUNK = 2**20  # bytes that are digested at a time


class Known(NamedTuple):
    """A file that was published with a digest, or with the beginning of one."""

    algorithm: str
    digest: str
    what: str


KNOWN = (
    # The beginning of its SHA-256 is in the name of the file.
    Known('sha256', '7be5be79', 'alexnet-owt-7be5be79.pth of torchvision'),
    # The pointers of Git LFS in `vision/classification/alexnet/model` of onnx/models.
    Known(
        'sha256',
        'ef3c82dad5c512f969dbf701fe35c0b3feb1585687d541f765eb68730c0a8af7',
        'bvlcalexnet-9.onnx of the ONNX model zoo',
    ),
    Known(
        'sha256',
        '6b0da9510f27f234ee96a85dc3809dd210150fdefad87f6850f9788513216945',
        'bvlcalexnet-12.onnx of the ONNX model zoo',
    ),
    # In `models/bvlc_alexnet/readme.md` and `models/bvlc_reference_caffenet/readme.md` of Caffe.
    Known('sha1', '9116a64c0fbe4459d18f4bb6b56d647b63920377', 'bvlc_alexnet.caffemodel of BVLC'),
    Known(
        'sha1',
        '4c8d77deb20ea792f84eb5e6d0a11ca0a8660a46',
        'bvlc_reference_caffenet.caffemodel of BVLC',
    ),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wishes:
    """What a user says of a file, where the file does not."""

    checkpoint: str = 'latest'  # of a run: 'latest', 'best' or a step
    format: str = ''  # one of READS; '': found by the content
    config: Mapping[str, Any] | None = None  # of a state dict of the module of our pages
    mean: np.ndarray | None = (
        None  # of a .caffemodel or .onnx, [H, W, C] or [C], red, green and blue
    )
    class_names: tuple[str, ...] = ()


def read(path: epath.Path, wishes: Wishes) -> tuple[TrainedNetwork, str]:
    """Return the network of a file, or of the workdir of a run, and the name of its format.

    Raises UserError, in one line, for a file in no format that is read here, and for wishes that
    such a file has no use for.
    """
    is_file = os.path.isfile(path)  # `path.is_file` is true of a pipe, which would never end
    if path.exists() and not is_file and not path.is_dir():
        raise UserError(f'{path} is not a file, but a pipe or a device; copy it to a file')
    if is_file and not wishes.format:
        _refuse_pickle(path)
    kind = wishes.format or _by_suffix(path)
    tensors, metadata = {}, {}
    if kind not in _WITH_A_MEAN and is_file:
        tensors, metadata = weights.open_safetensors(path)
        tensors = pytorch.plain_names(tensors)
    kind = kind or _by_content(path, tensors, metadata)
    if wishes.mean is not None and kind not in _WITH_A_MEAN:
        raise UserError(f'--mean is for a .caffemodel or .onnx, and {path} is of the format {kind}')
    if wishes.config is not None and (kind != 'pytorch' or pytorch.KEY in metadata):
        raise UserError(f'--config is for a PyTorch file without a description, unlike {path}')
    if kind == OURS:
        trained = read_trained(path, wishes.checkpoint)
        require_fit(trained)
    elif kind in _WITH_A_MEAN:
        trained = _WITH_A_MEAN[kind].read(path, wishes.mean)
    elif not is_file:
        raise UserError(f'{path} is not a file; name a safetensors file of PyTorch')
    elif kind == 'torchvision':
        trained = pytorch.read_torchvision(path, tensors)
    else:
        trained = pytorch.read_module(path, tensors, metadata, wishes.config)
    if not trained.about:
        trained = dataclasses.replace(trained, about=_about(path, kind))
    return _named(trained, wishes.class_names, path), kind


def write(path: epath.Path, trained: TrainedNetwork, format: str, dtype: str) -> None:
    """Write a network in one of the formats WRITES, atomically."""
    if format in _EXPORTS:
        _EXPORTS[format].write(path, trained)
    else:
        {OURS: weights.write, 'pytorch': pytorch.write_module}[format](path, trained, dtype)


def format_of_output(path: epath.Path, format: str, dtype: str) -> str:
    """Return the format to write: `format`, or for '' the one of the file's suffix.

    Raises UserError for a suffix that is not that of the format, and for a dtype of an export,
    which computes as the network does.
    """
    suffixes = {name: module.SUFFIX for name, module in _EXPORTS.items()}
    found = next((name for name, suffix in suffixes.items() if path.suffix == suffix), OURS)
    format = format or found
    if path.suffix != suffixes.get(format, SUFFIX):
        wanted = suffixes.get(format, SUFFIX)
        others = '' if format in suffixes else f', or in {" or ".join(suffixes.values())}'
        raise UserError(f'OUT: {path} must end in {wanted}{others}')
    if format in _EXPORTS and dtype != 'float32':
        raise UserError(f'--dtype={dtype} is for weights, not for {format}; leave it out')
    return format


def check_output(path: epath.Path, source: epath.Path) -> None:
    """Raise UserError unless a file may be written there: it must not be the source.

    `storage.replace` writes a temporary file beside it first, which must not be the source either.
    """
    if path.is_dir():
        raise UserError(f'OUT: {path} is a folder; name a file')
    for file in (path, path.with_name(f'{path.name}.tmp')):
        if file.exists() and source.exists() and os.path.samefile(file, source):
            raise UserError(f'OUT: {path} would overwrite {source}; choose another name')


def recognise(path: epath.Path) -> str:
    """Say which published file this is, from its digest."""
    digests = {name: hashlib.new(name) for name in {known.algorithm for known in KNOWN}}
    with path.open('rb') as file:
        while chunk := file.read(_CHUNK):
            for digest in digests.values():
                digest.update(chunk)
    for known in KNOWN:
        if digests[known.algorithm].hexdigest().startswith(known.digest):
            return f'recognised: {known.what}'
    return 'not a known file'


def _refuse_pickle(path: epath.Path) -> None:
    with path.open('rb') as file:
        start = file.read(10)
    if not start:
        raise UserError(f'{path} is empty; copy it again')
    if path.suffix in _PICKLES or start.startswith(_MADE_BY_PICKLE):
        raise UserError(
            f'{path} is a pickle ({recognise(path)}), which is not read here, because it can run '
            'code; two lines of PyTorch make a file that is: '
            f"weights = torch.load('{path.name}', weights_only=True); "
            f"safetensors.torch.save_file(weights, '{path.stem}{SUFFIX}')"
        )


def _by_suffix(path: epath.Path) -> str:
    if path.is_dir():
        return OURS
    suffixes = {module.SUFFIX: name for name, module in _WITH_A_MEAN.items()}
    return suffixes.get(path.suffix, '')


def _by_content(
    path: epath.Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> str:
    """Return the format of a safetensors file, or that of a path that is not there."""
    if not path.exists() or weights.KEY in metadata:
        return OURS
    if pytorch.KEY in metadata or pytorch.FIRST in tensors:
        return 'pytorch'
    if pytorch.FIRST_OF_TORCHVISION in tensors:
        return 'torchvision'
    names = ', '.join(sorted(tensors)[:3]) or 'nothing'
    raise UserError(
        f'{path} has neither {pytorch.FIRST} nor {pytorch.FIRST_OF_TORCHVISION}, but {names}; '
        'docs/weights.md has the formats'
    )


def _about(path: epath.Path, kind: str) -> dict[str, Any]:
    with open(path, 'rb') as file:
        digest = hashlib.file_digest(file, 'sha256').hexdigest()
    return {'imported_from': {'file': path.name, 'format': kind, 'sha256': digest}}


def _named(
    trained: TrainedNetwork, class_names: tuple[str, ...], path: epath.Path
) -> TrainedNetwork:
    """Return the network with the class names of the user, or with ImageNet's if it has none."""
    count = len(trained.class_names)
    if class_names and len(class_names) != count:
        raise UserError(f'--names has {len(class_names)} lines, but {path} has {count} classes')
    if not class_names and count == 1000 and 'imported_from' in trained.about:
        numbers = tuple(map(str, range(count)))
        if trained.class_names == numbers:
            class_names = tuple(imagenet.synsets_of_2012())
    return dataclasses.replace(trained, class_names=class_names) if class_names else trained


def names_in(path: epath.Path) -> tuple[str, ...]:
    """Return the class names of a text file, one a line, in the order of the logits."""
    if not os.path.isfile(path):
        raise UserError(f'--names: {path} is not a file; name a text file, one class a line')
    try:
        lines = path.read_text().splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f'--names: {path} is not a text file in UTF-8') from error
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines or not all(line.strip() for line in lines):
        raise UserError(f'--names: {path} must have the name of a class on each line')
    return tuple(line.strip() for line in lines)


def mean_in(text: str) -> np.ndarray:
    """Return the mean that `--mean` gives, red, green and blue: [C] or [H, W, C].

    It is three numbers in Caffe's order, blue, green and red, or a file of a mean image.
    """
    try:
        numbers = [float(part) for part in text.split(',')]
    except ValueError:
        return caffe.read_mean(storage.resolve(text, '--mean'))
    if len(numbers) != 3 or not np.isfinite(numbers).all():
        raise UserError(
            f'--mean={text} should be three numbers, blue, green and red, such as 104,117,123, or '
            'a .binaryproto file'
        )
    return np.asarray(numbers[::-1])
