"""Save checkpoints with Orbax in the background, and verify their digests before any use.

This is the only module that uses Orbax. Orbax restores a flipped bit without an error, so each
committed step gets a `manifest.json`, written last, with the SHA-256 of every file. A step without
a manifest is unfinished and a step that does not match its manifest is damaged; neither is loaded.
"""

import dataclasses
import logging
import operator
import threading
from collections.abc import Callable, Mapping
from concurrent import futures
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import serialization, traverse_util
from orbax.checkpoint.checkpoint_managers import preservation_policy

from alexnet_jax.checkpoint import earlier
from alexnet_jax.checkpoint.manifest import find_sound, move_aside, take_back, write_manifest
from alexnet_jax.parallel import processes
from alexnet_jax.runtime.config import PLACE, Section, field, integer
from alexnet_jax.runtime.errors import UserError, first_line

_logger = logging.getLogger(__name__)
_BEST = 'eval/top1_error'
_COMMITTED = '_CHECKPOINT_METADATA'  # is in a step's directory once Orbax has committed the step


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
    """Orbax's manager without its checks for SIGTERM, which would interfere with the loop's."""

    def reached_preemption(self, step: int) -> bool:
        del step
        return False


class Checkpoints:
    """The checkpoints of one run, WORKDIR/checkpoints/STEP; read-only without a `config`."""

    def __init__(self, workdir: epath.Path, config: CheckpointConfig | None = None) -> None:
        read_only, config = config is None, config or _READ_ONLY
        self._directory = (workdir / 'checkpoints').resolve()  # Orbax wants an absolute path
        self._damaged = workdir / 'damaged'
        self._superseded = workdir / 'superseded'
        if not read_only:
            processes.from_first(
                lambda: take_back(self._superseded, self._directory, self._damaged)
            )
        self._save_every_steps = config.save_every_steps
        self._sealer = futures.ThreadPoolExecutor(1, 'seal')
        self._sealing: futures.Future | None = None
        self._stop_sealing = threading.Event()
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
        self._manager = _Manager(
            self._directory,
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
            self._sealer.shutdown()
            self._manager.close()

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
        if step in self._manager.all_steps():
            if not processes.from_first(lambda: self._make_way(step, metrics is not None)):
                return
            self._manager.reload()
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(_to_tree(state)), meta=ocp.args.JsonSave(dict(meta))
            ),
            metrics=dict(metrics) if metrics else None,
            force=True,
        )
        if jax.process_index() == 0:
            self._stop_sealing.clear()
            self._sealing = self._sealer.submit(self._seal, step)

    def _make_way(self, step: int, evaluated: bool) -> bool:
        """Move a saved step aside if only the new save has metrics; return whether it was moved."""
        if not evaluated or self._manager.metrics(step) is not None:
            return False
        self._superseded.mkdir(parents=True, exist_ok=True)
        (self._directory / str(step)).rename(self._superseded / str(step))
        return True

    def _seal(self, step: int) -> None:
        """Wait until Orbax has committed a step, then write its manifest."""
        directory = self._directory / str(step)
        while not (directory / _COMMITTED).exists():
            if self._stop_sealing.wait(0.02):
                return
        write_manifest(directory)

    def wait(self) -> None:
        """Wait until the current save is committed and sealed; raise UserError if it failed."""
        sealing, self._sealing = self._sealing, None
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
            if sealing is not None:
                sealing.result()
        except Exception as error:  # Orbax raises those of the file system and of tensorstore
            self._stop_sealing.set()
            if processes.is_lost_peer(error):
                raise
            raise UserError(
                f'a checkpoint could not be written to {self._directory} '
                f'({first_line(error)}); free some space there, then run the same command again'
            ) from error
        if sealing is not None and self._superseded.exists():
            self._superseded.rmtree()

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
        if which == 'best':
            best = self._manager.best_step()
            if steps and best is None:
                raise UserError(
                    f'no checkpoint in {self._directory} was evaluated, so none is the best; '
                    'use --config.evaluation.checkpoint=latest'
                )
            steps = [step for step in steps if step == best]
        elif which != 'latest':
            steps = [step for step in steps if str(step) == which]
        sound, bad = find_sound(self._directory, steps, which)
        if set_aside:
            for step in bad:
                move_aside(self._directory / str(step), self._damaged)
        return sound

    def find(self, which: str = 'latest') -> tuple[int, dict[str, Any]] | None:
        """Return the step and meta of a sound checkpoint, or None if there are no checkpoints.

        `which` is 'latest', 'best' or a step; process 0 chooses for all processes. Raises UserError
        if the checkpoint asked for is not sound, and for 'best' if none was evaluated.
        """
        step = processes.from_first(lambda: self._choose(which, set_aside=False))
        return None if step is None else (step, self._read_meta(step))

    def restore_params(self, step: int, abstract_params: Any) -> tuple[Any, dict[str, str]]:
        """Restore the parameters of a step whose name, shape and dtype match those asked for.

        Returns these, `{layer: {kernel, bias}}`, and the difference for each other parameter that
        is saved or asked for, such as `{'fc8.bias': 'float32[5] there, float32[10] here'}`.
        """
        saved = _flat(self._manager.item_metadata(step)['state']['params'])
        have, want = _kinds(saved), _kinds(_flat(abstract_params))
        others = {
            name: f'{_describe(have.get(name))} there, {_describe(want.get(name))} here'
            for name in sorted(have.keys() | want.keys())
            if have.get(name) != want.get(name)
        }
        chosen = {k: leaf for k, leaf in _flat(abstract_params).items() if k not in others}
        if not chosen:
            return {}, others
        tree = {'params': traverse_util.unflatten_dict(chosen, sep='.')}
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            restored = checkpointer.restore(
                self._directory / str(step) / 'state',
                args=ocp.args.PyTreeRestore(
                    item=tree,
                    restore_args=ocp.checkpoint_utils.construct_restore_args(tree),
                    partial_restore=True,
                ),
            )
        return restored['params'], others

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
        saved = self._manager.item_metadata(step)['state']
        have, want = _kinds(_flat(saved)), _kinds(_flat(tree))
        for name in sorted(have.keys() | want.keys()):
            if have.get(name) != want.get(name):
                raise UserError(
                    f'checkpoint {self._directory / str(step)} does not fit this configuration: '
                    f'{name} is {_describe(have.get(name))} there and {_describe(want.get(name))} '
                    'here; use the configuration of that run or another --workdir'
                )


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


def _kinds(flat: Mapping[str, Any]) -> dict[str, tuple]:
    return {name: (leaf.shape, np.dtype(leaf.dtype)) for name, leaf in flat.items()}


def _describe(leaf: tuple | None) -> str:
    return f'{leaf[1].name}{list(leaf[0])}' if leaf else 'absent'
