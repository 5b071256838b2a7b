"""Load the parameters of an earlier run, for evaluation or to initialise a new run."""

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
from etils import epath

from alexnet_jax.checkpoint import weights
from alexnet_jax.checkpoint.checkpoints import Checkpoints, differences_in_kind, kinds
from alexnet_jax.input import sources
from alexnet_jax.runtime import storage
from alexnet_jax.runtime.errors import UserError

_logger = logging.getLogger(__name__)
_T = TypeVar('_T')
_LOOKS = 5  # at checkpoints that a training deletes meanwhile


def workdir_of(place: epath.Path) -> epath.Path:
    """Return WORKDIR for WORKDIR or WORKDIR/checkpoints/STEP; `~` is expanded."""
    place = place.expanduser()
    return place.parents[1] if place.parent.name == 'checkpoints' else place


@contextlib.contextmanager
def read_only(
    place: epath.Path, which: str = 'latest'
) -> Iterator[tuple[Checkpoints, int, dict[str, Any]]]:
    """Open the checkpoints at `place` to read them; yield (checkpoints, step, meta).

    `place` is WORKDIR/checkpoints/STEP for that step, or WORKDIR for its 'latest' or 'best' step,
    as `which` says. Raises UserError if there is no such step or it is not sound.
    """
    workdir = workdir_of(place)
    if place.parent.name == 'checkpoints':
        which = place.name
    none = UserError(f'no checkpoint in {place}; name the workdir of a run that has saved one')
    if not (workdir / 'checkpoints').exists():
        raise none
    with Checkpoints(workdir) as checkpoints:
        found = checkpoints.find(which)
        if found is None:
            raise none
        yield checkpoints, *found


def read(
    place: epath.Path, which: str, use: Callable[[Checkpoints, int, dict[str, Any]], _T]
) -> _T:
    """Return `use(checkpoints, step, meta)` for the step that `read_only` finds.

    A training may delete that step meanwhile: then this looks for the step again, with one process
    four times at most, and raises UserError after that.
    """
    for look in range(1, _LOOKS + 1):
        before = _files(place)
        try:
            with read_only(place, which) as (checkpoints, step, meta):
                return use(checkpoints, step, meta)
        except Exception as error:
            if before <= _files(place):  # nothing was deleted
                raise
            if jax.process_count() > 1 or look == _LOOKS:  # the others may have read all of it
                raise UserError(
                    f'the checkpoints in {place} were deleted while they were read; run the same '
                    'command again, or raise checkpoint.keep_latest of that run'
                ) from error
        _logger.warning('a checkpoint in %s was deleted while it was read; looking again', place)
    raise AssertionError


def _files(place: epath.Path) -> set[str]:
    """Return the files of all steps that are committed."""
    steps = workdir_of(place) / 'checkpoints'
    found = steps.iterdir() if steps.exists() else ()
    return {
        f'{root}/{name}'
        for step in found
        if step.name.isdigit()
        for root, _, names in step.walk()
        for name in names
    }


def restore_network(wanted: Any, checkpoints: Checkpoints, step: int, place: epath.PathLike) -> Any:
    """Restore the network that is abstract in `wanted`; raise UserError unless all fit."""
    network, others = checkpoints.restore_network(step, wanted)
    for name, difference in others.items():
        raise UserError(
            f'checkpoint {step} in {place} is of another network: {name} is {difference}; '
            'use the configuration of its run'
        )
    return network


def init_network(
    wanted: Any, network: Any, source: str, class_names: str
) -> tuple[Any, dict[str, int | str]]:
    """Initialise parameters from an earlier run where they fit; leave the others as drawn.

    A parameter fits if its name, shape and dtype are the same, on any mesh. fc8 fits only if the
    names of the classes are the same, too.

    Args:
      wanted: shape, dtype and sharding of the new run's network.
      network: the new run's network as drawn.
      source: WORKDIR for the latest checkpoint, WORKDIR/checkpoints/STEP, or a weights file.
      class_names: the digest of the new run's class names.

    Returns:
      The network, and what to log: `init_step`, `init_data`, `loaded`, `drawn_anew`.

    Raises UserError if there is no sound checkpoint or file, or if none of its parameters fits.
    """
    place = storage.resolve(source, 'config.training.init_from')
    if place.is_file():
        found = _in_file(place, wanted, class_names)
    else:
        restore = functools.partial(_in_checkpoint, wanted=wanted, class_names=class_names)
        found = read(place, 'latest', restore)
    step, data, loaded, anew = found
    if not loaded:
        raise UserError(
            f'config.training.init_from = {source}: none of its parameters fits, for example '
            f'{next(f"{k} is {v}" for k, v in anew.items())}; choose a run of the same network'
        )
    for name, reason in anew.items():
        _logger.info('%s is not taken from %s: %s', name, source, reason)
    leaves = {layer: {**network[layer], **loaded.get(layer, {})} for layer in network}
    return leaves, {
        'init_step': step,
        'init_data': data,
        'loaded': ' '.join(f'{k}.{name}' for k, layer in sorted(loaded.items()) for name in layer),
        'drawn_anew': '; '.join(f'{name} ({reason})' for name, reason in anew.items()),
    }


def _in_checkpoint(
    checkpoints: Checkpoints, step: int, meta: dict[str, Any], *, wanted: Any, class_names: str
) -> tuple[int, str, Any, dict[str, str]]:
    """Return step, data set, the leaves that fit, and for the others why they do not."""
    known, anew = _without_other_classes(wanted, meta['data']['class_names'] == class_names)
    loaded, others = checkpoints.restore_network(step, known)
    return step, meta['data']['train_name'], loaded, _reasons(others, anew)


def _in_file(
    path: epath.Path, wanted: Any, class_names: str
) -> tuple[int, str, Any, dict[str, str]]:
    """Return the same as `_in_checkpoint` for a weights file."""
    trained = weights.read(path)
    same_classes = sources.class_names_digest(trained.class_names) == class_names
    known, anew = _without_other_classes(wanted, same_classes)
    others = differences_in_kind(kinds(trained.network), kinds(known))
    loaded: dict[str, dict[str, jax.Array]] = {}
    for layer, leaves in known.items():
        for name, leaf in leaves.items():
            if f'{layer}.{name}' not in others:
                array = trained.network[layer][name]
                placed = jax.make_array_from_callback(leaf.shape, leaf.sharding, array.__getitem__)
                loaded.setdefault(layer, {})[name] = placed
    about = trained.about
    return about.get('step', 0), about.get('data', ''), loaded, _reasons(others, anew)


def _without_other_classes(wanted: Any, same_classes: bool) -> tuple[Any, dict[str, str]]:
    """Return what may be taken: all of it, or all but fc8 if its classes are others."""
    if same_classes:
        return wanted, {}
    return {k: leaves for k, leaves in wanted.items() if k != 'fc8'}, {'fc8': 'other classes'}


def _reasons(others: dict[str, str], anew: dict[str, str]) -> dict[str, str]:
    return {k: v for k, v in others.items() if not (k.startswith('fc8.') and 'fc8' in anew)} | anew
