"""Save checkpoints with Orbax in the background, and verify their digests before any use.

This is the only module that uses Orbax. Orbax restores a flipped bit without an error, so each
committed step whose arrays are all there gets a `manifest.json`, written last, with the SHA-256 of
every file. A step without a manifest is unfinished and a step that does not match its manifest is
damaged; neither is loaded.
"""

import contextlib
import dataclasses
import functools
import json
import logging
import operator
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import serialization, traverse_util
from orbax.checkpoint.checkpoint_managers import preservation_policy

from alexnet_jax.checkpoint import earlier, manifest
from alexnet_jax.parallel import processes
from alexnet_jax.runtime import storage
from alexnet_jax.runtime.config import PLACE, Section, field, integer, is_number
from alexnet_jax.runtime.errors import UserError, first_line

_logger = logging.getLogger(__name__)
_BEST = 'eval/top1_error'
_METRICS = 'metrics/metrics'  # the file in which Orbax keeps them


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig(Section):
    """The section `checkpoint`."""

    save_every_steps: int = field(integer(0), role=PLACE)
    keep_latest: int = field(integer(2), role=PLACE)  # one is sealed as the next is written
    keep_best: int = field(integer(0), role=PLACE)


_READ_ONLY = CheckpointConfig(save_every_steps=0, keep_latest=2, keep_best=0)


class Restored(NamedTuple):
    """A restored checkpoint."""

    step: int
    state: Any
    meta: dict[str, Any]
    evaluated: bool  # whether this step was evaluated before it was saved


class _Manager(ocp.CheckpointManager):
    """Orbax's manager, which leaves SIGTERM to the loop and reads no damaged metrics."""

    def reached_preemption(self, step: int) -> bool:
        del step
        return False

    def metrics(self, step: int) -> dict[str, float] | None:
        directory = self.directory / str(step)
        try:
            metrics = json.loads((directory / _METRICS).read_bytes())
        except (OSError, ValueError):  # there are none, or they are damaged
            return None
        fit = isinstance(metrics, dict) and is_number(metrics.get(_BEST))
        return metrics if fit and not manifest.find_damage_of(directory, _METRICS) else None


class Checkpoints:
    """The checkpoints of one run, WORKDIR/checkpoints/STEP; read-only without a `config`."""

    def __init__(self, workdir: epath.Path, config: CheckpointConfig | None = None) -> None:
        read_only, config = config is None, config or _READ_ONLY
        self._directory = (workdir / 'checkpoints').resolve()  # Orbax wants an absolute path
        self._damaged = workdir / 'damaged'
        self._superseded = workdir / 'superseded'
        self._save_every_steps = config.save_every_steps
        self._begun = -1  # the step of the last save
        self._sealing: futures.Future | None = None
        with contextlib.ExitStack() as stack:
            if not read_only:
                processes.from_first(self._prepare)
            self._inode = _inode(self._directory)
            # The directory as Orbax takes it; see `storage.literal`.
            self._path = stack.enter_context(storage.literal(self._directory))
            _silence_calls_of_closed_loops()
            self._manager = self._open(config, read_only)
            stack.callback(self._manager.close)
            self._sealer = stack.enter_context(futures.ThreadPoolExecutor(1, 'seal'))
            self._opened = stack.pop_all()

    def _prepare(self) -> None:
        """Make the directory, and undo what a kill has left half done there."""
        with storage.writing(f'checkpoints to {self._directory}'):
            self._directory.mkdir(parents=True, exist_ok=True)
            manifest.take_back(self._superseded, self._directory, self._damaged)

    def _open(self, config: CheckpointConfig, read_only: bool) -> _Manager:
        error = operator.itemgetter(_BEST)
        keep = [
            preservation_policy.LatestN(config.keep_latest),
            preservation_policy.BestN(
                get_metric_fn=error,
                reverse=True,  # the last of a descending order: the smallest error
                n=config.keep_best,
                keep_checkpoints_without_metrics=False,
            ),
        ]
        return _Manager(
            self._path,
            item_handlers={
                'state': ocp.StandardCheckpointHandler(),
                'meta': ocp.JsonCheckpointHandler(),
            },
            options=ocp.CheckpointManagerOptions(
                preservation_policy=preservation_policy.AnyPreservationPolicy(keep),
                best_fn=error,  # without it Orbax does not write the metrics
                best_mode='min',
                cleanup_tmp_directories=not read_only,  # a training run may still be writing them
                read_only=read_only,
                save_root_metadata=False,
            ),
        )

    def __enter__(self) -> 'Checkpoints':
        return self

    def __exit__(self, kind: object, value: BaseException | None, trace: object) -> None:
        if value is not None and jax.process_count() > 1:
            return  # the other processes may be gone: waiting for them would hide the error
        try:
            self.wait()
            processes.wait_for_all('the last checkpoint is sealed')
        except Exception as error:
            if value is None:
                raise
            # Not raised, because the first error is the one that ends the run.
            _logger.warning('the last save failed, too: %s', error)
        finally:
            self._opened.close()

    def due(self, step: int) -> bool:
        """Say whether `save_every_steps` asks for a save after `step` steps."""
        return self._save_every_steps > 0 and step % self._save_every_steps == 0

    def save(
        self,
        step: int,
        state: Any,
        meta: Mapping[str, Any],
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Begin to save a step; its `metrics`, if it was evaluated, decide which step is the best.

        The state may be donated as soon as this returns. A step that was saved before is not saved
        again, unless it was saved without `metrics` and they are given now. Raises UserError if
        the previous save failed.
        """
        self.wait()
        if _inode(self._directory) != self._inode:
            raise UserError(
                f'{self._directory} was deleted, replaced or unmounted while the run was writing '
                'to it; bring it back or choose another --workdir, and start the run again'
            )
        if step in self._manager.all_steps():
            if not processes.from_first(lambda: self._make_way(step, metrics is not None)):
                return
            self._manager.reload()
        tree = _to_tree(state)
        with self._saving(step):
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(tree), meta=ocp.args.JsonSave(dict(meta))
                ),
                metrics=dict(metrics) if metrics else None,
                force=True,
            )
        if jax.process_index() == 0:
            self._sealing = self._sealer.submit(self._seal, step, kinds(tree))
        self._begun = step

    def _make_way(self, step: int, evaluated: bool) -> bool:
        """Move a saved step aside if only the new save has metrics; return whether it was moved."""
        if not evaluated or self._manager.metrics(step) is not None:
            return False
        with storage.writing(f'a checkpoint to {self._superseded}'):
            self._superseded.mkdir(parents=True, exist_ok=True)
            (self._directory / str(step)).rename(self._superseded / str(step))
        return True

    def _seal(self, step: int, wanted: dict[str, tuple]) -> None:
        """Wait until Orbax has committed a step, and write its manifest if all leaves are there."""
        self._manager.wait_until_finished()
        if not (self._directory / str(step)).exists():
            raise ValueError(f'Orbax has not committed step {step}')
        saved = self._saved_kinds(step)
        for name in sorted(wanted.keys() | saved.keys()):
            if saved.get(name) != wanted.get(name):
                raise ValueError(
                    f'{name} is {_describe(saved.get(name))} and not {_describe(wanted.get(name))}'
                )
        manifest.write_manifest(self._directory / str(step))

    def wait(self) -> None:
        """Wait until the current save is committed and sealed; raise UserError if it failed."""
        sealing, self._sealing = self._sealing, None
        with self._saving(self._begun):
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
            if sealing is not None:
                sealing.result()
        if sealing is not None and self._superseded.exists():
            with storage.writing(f'a checkpoint to {self._superseded}'):
                self._superseded.rmtree()

    @contextlib.contextmanager
    def _saving(self, step: int) -> Iterator[None]:
        """Turn an error of the body into a UserError, and remove what the save has left behind."""
        try:
            yield
        except Exception as error:  # Orbax raises those of the file system and of tensorstore
            if processes.is_lost_peer(error):
                raise
            if jax.process_index() == 0:
                self._remove_unsealed(step)
            raise storage.unwritten(f'a checkpoint to {self._directory}', error) from error

    def _remove_unsealed(self, step: int) -> None:
        """Free the space that a failed save takes; the steps before it stay."""
        for path in self._contents():
            unsealed = path.name == str(step) and not (path / manifest.NAME).exists()
            if unsealed or ocp.utils.is_tmp_checkpoint(path):
                shutil.rmtree(path, ignore_errors=True)

    def _contents(self) -> list[epath.Path]:
        return sorted(self._directory.iterdir()) if self._directory.exists() else []

    def restore(
        self,
        abstract_state: Any,
        check_meta: Callable[[dict[str, Any]], None],
        *,
        set_aside: bool = False,
    ) -> Restored | None:
        """Restore the newest sound checkpoint; return None if there are no checkpoints.

        Args:
          abstract_state: shape, dtype and sharding of every leaf, on any mesh.
          check_meta: called with the saved meta before the state is restored; it raises UserError
            if the checkpoint belongs to another run.
          set_aside: whether to move damaged and unfinished steps to WORKDIR/damaged, so that
            training can save those steps again.

        Raises:
          UserError: the state does not fit, or there are checkpoints but none is sound.
        """
        step = processes.from_first(lambda: self._choose('latest', set_aside))
        if set_aside:
            self._manager.reload()
        return None if step is None else self._restore_step(step, abstract_state, check_meta)

    def _choose(self, which: str, set_aside: bool) -> int | None:
        """Return the step to restore, or None if there is none; see `restore` and `find`."""
        steps = sorted(self._manager.all_steps(), reverse=True)
        known = set(map(str, steps))
        strangers = [
            path.name
            for path in self._contents()
            if path.name not in known and not ocp.utils.is_tmp_checkpoint(path)
        ]
        if strangers:
            _logger.warning('in %s, %s', self._directory, manifest.words_for_strangers(strangers))
        if which == 'best':
            self._require_sound_metrics(steps)
            best = self._manager.best_step()
            if steps and best is None:
                raise UserError(
                    f'no checkpoint in {self._directory} was evaluated, so none is the best; '
                    'use --config.evaluation.checkpoint=latest'
                )
            steps = [step for step in steps if step == best]
        elif which != 'latest':
            steps = [step for step in steps if str(step) == which]
        sound, bad = manifest.find_sound(self._directory, steps, which)
        if set_aside:
            with storage.writing(f'a damaged checkpoint to {self._damaged}'):
                for step in bad:
                    manifest.move_aside(self._directory / str(step), self._damaged)
        return sound

    def _require_sound_metrics(self, steps: Sequence[int]) -> None:
        """Raise UserError if it is not known which step is the best."""
        for step in steps:
            if problem := manifest.find_damage_of(self._directory / str(step), _METRICS):
                raise UserError(
                    f'checkpoint {step} in {self._directory} may be the best, but is not sound: '
                    f'{problem}; restore it from a copy, or choose a step with '
                    '--config.evaluation.checkpoint'
                )

    def find(self, which: str = 'latest') -> tuple[int, dict[str, Any]] | None:
        """Return the step and meta of a sound checkpoint, or None if there are no checkpoints.

        `which` is 'latest', 'best' or a step; process 0 chooses for all processes. Raises UserError
        if the checkpoint asked for is not sound, and for 'best' if none was evaluated.
        """
        step = processes.from_first(lambda: self._choose(which, set_aside=False))
        return None if step is None else (step, self._read_meta(step))

    def restore_network(self, step: int, abstract_network: Any) -> tuple[Any, dict[str, str]]:
        """Restore the network of a step where name, shape and dtype match those asked for.

        The network has parameters and the running averages of batch normalisation; if the run kept
        a moving average of both, it is that. Returns `{layer: {kernel, bias}}` and so on, and the
        difference for each other parameter that is saved or asked for, such as
        `{'fc8.bias': 'float32[5] there, float32[10] here'}`.
        """
        saved = self._open_arrays(step)
        places = {
            name.removeprefix(f'{part}.'): name
            for part in ('params', 'batch_stats', 'ema')  # the last one that has a leaf
            for name in saved
            if name.startswith(f'{part}.')
        }
        have = {name: saved[place] for name, place in places.items()}
        others = differences_in_kind(have, kinds(abstract_network))
        chosen = {k: leaf for k, leaf in _flat(abstract_network).items() if k not in others}
        if not chosen:
            return {}, others
        tree = traverse_util.unflatten_dict({places[k]: x for k, x in chosen.items()}, sep='.')
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            restored = checkpointer.restore(
                self._path / str(step) / 'state',
                args=ocp.args.PyTreeRestore(
                    item=tree,
                    restore_args=ocp.checkpoint_utils.construct_restore_args(tree),
                    partial_restore=True,
                ),
            )
        flat = _flat(restored)
        network = {name: flat[places[name]] for name in chosen}
        return traverse_util.unflatten_dict(network, sep='.'), others

    def _read_meta(self, step: int) -> dict[str, Any]:
        arguments = ocp.args.Composite(meta=ocp.args.JsonRestore())
        meta = self._manager.restore(step, args=arguments)['meta']
        return meta | {'config': earlier.in_present_names(meta['config'])}

    def _restore_step(self, step, abstract_state, check_meta) -> Restored:
        meta = self._read_meta(step)
        check_meta(meta)
        tree = _to_tree(abstract_state)
        self._check_leaves(step, tree)
        state = self._manager.restore(
            step, args=ocp.args.Composite(state=ocp.args.StandardRestore(tree))
        )['state']
        evaluated = self._manager.metrics(step) is not None
        return Restored(step, _from_tree(abstract_state, state), meta, evaluated)

    def _check_leaves(self, step: int, tree: Any) -> None:
        """Raise UserError unless names, shapes and dtypes match; Orbax would silently cast."""
        have, want = self._open_arrays(step), kinds(tree)
        for name in sorted(have.keys() | want.keys()):
            if have.get(name) != want.get(name):
                raise UserError(
                    f'checkpoint {self._directory / str(step)} does not fit this configuration: '
                    f'{name} is {_describe(have.get(name))} there and {_describe(want.get(name))} '
                    'here; use the configuration of that run or another --workdir'
                )

    def _open_arrays(self, step: int) -> dict[str, tuple]:
        """Return `_saved_kinds`; raise UserError for a step that was sealed incomplete."""
        directory = self._directory / str(step)
        try:
            return self._saved_kinds(step)
        except (OSError, ValueError) as error:
            if manifest.find_damage(directory):
                raise  # it was deleted, by the run that writes it
            raise UserError(
                f'checkpoint {directory} is not complete ({first_line(error)[:80]}); move it away, '
                'or choose another one'
            ) from error

    def _saved_kinds(self, step: int) -> dict[str, tuple]:
        """Open every array of a step, and return its shape and dtype."""
        handler = ocp.StandardCheckpointHandler()
        return kinds(handler.metadata(self._path / str(step) / 'state'))


def _inode(directory: epath.Path) -> tuple[int, int] | None:
    """Return what tells a directory from any other, or None if there is none."""
    try:
        found = os.stat(directory)
    except OSError:
        return None
    return found.st_dev, found.st_ino


@functools.cache
def _silence_calls_of_closed_loops() -> None:
    """Print no tracebacks of tensorstore's calls to a loop that Orbax has closed after an error.

    There are dozens when a save fails, and the error itself is raised, too. Some come after the
    checkpoints are closed, so this holds until the process ends.
    """
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if unraisable.object is not None or str(unraisable.exc_value) != 'Event loop is closed':
            before(unraisable)

    sys.unraisablehook = hook


def _to_tree(state: Any) -> dict[str, Any]:
    """Return the state as nested dicts without empty nodes, with the names that are saved."""
    return traverse_util.unflatten_dict(
        traverse_util.flatten_dict(serialization.to_state_dict(state))
    )


def _from_tree(template: Any, tree: Mapping[str, Any]) -> Any:
    flat = traverse_util.flatten_dict(serialization.to_state_dict(template), keep_empty_nodes=True)
    flat |= traverse_util.flatten_dict(dict(tree))
    return serialization.from_state_dict(template, traverse_util.unflatten_dict(flat))


def _flat(tree: Any) -> dict[str, Any]:
    return traverse_util.flatten_dict(dict(tree), sep='.')


def kinds(tree: Any) -> dict[str, tuple]:
    """Return the shape and dtype of each leaf of nested dicts, by dotted names."""
    return {name: (x.shape, np.dtype(x.dtype)) for name, x in _flat(tree).items()}


def differences_in_kind(there: Mapping[str, tuple], here: Mapping[str, tuple]) -> dict[str, str]:
    """Return the leaves whose shapes or dtypes differ, or that one side lacks, with both."""
    return {
        name: f'{_describe(there.get(name))} there, {_describe(here.get(name))} here'
        for name in sorted(there.keys() | here.keys())
        if there.get(name) != here.get(name)
    }


def _describe(leaf: tuple | None) -> str:
    return f'{leaf[1].name}{list(leaf[0])}' if leaf else 'absent'
