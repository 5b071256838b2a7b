"""Checkpoints: written by Orbax in the background, sealed with digests, checked before any use.

The only file that knows Orbax, which restores a flipped bit without an error. So each committed
step gets `manifest.json`, the SHA-256 of every one of its files, written last; a step without a
manifest is not finished, a step that differs from it is damaged, and neither is ever loaded.
"""

import hashlib
import itertools
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

from alexnet_jax.config import UserError
from alexnet_jax.parallel import processes
from alexnet_jax.training.manifest import NAME, find_damage, write_manifest

_logger = logging.getLogger(__name__)
_BEST = 'eval/top1_error'
_COMMITTED = '_CHECKPOINT_METADATA'  # in a step's directory once Orbax has renamed it


class Restored(NamedTuple):
    """A checkpoint in memory."""

    step: int
    state: Any
    meta: dict[str, Any]
    evaluated: bool  # the errors of this very step are known


class _Manager(ocp.CheckpointManager):
    """Orbax's manager without its questions after SIGTERM, which would mix with the loop's own."""

    def reached_preemption(self, step: int) -> bool:
        del step
        return False


class Checkpoints:
    """The checkpoints of one run in WORKDIR/checkpoints/STEP/; fed by the `checkpoint` section."""

    def __init__(
        self,
        workdir: epath.Path,
        *,
        save_every_steps: int,
        keep_latest: int,
        keep_best: int,
        read_only: bool = False,
    ) -> None:
        self._directory = (workdir / 'checkpoints').resolve()  # Orbax wants an absolute path
        self._damaged = workdir / 'damaged'
        self._superseded = workdir / 'superseded'
        if not read_only:
            processes.from_first(self._take_back_superseded)
        self._save_every_steps = save_every_steps
        self._sealer = futures.ThreadPoolExecutor(1, 'seal')
        self._sealing: futures.Future | None = None
        self._stop_sealing = threading.Event()
        error = operator.itemgetter(_BEST)
        keep = [
            preservation_policy.LatestN(keep_latest),
            preservation_policy.BestN(
                get_metric_fn=error,
                reverse=True,  # the last of a descending order: the smallest error
                n=keep_best,
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
                cleanup_tmp_directories=not read_only,  # they may be those of a running training
                read_only=read_only,
                save_root_metadata=False,
            ),
        )

    def __enter__(self) -> 'Checkpoints':
        return self

    def __exit__(self, kind: object, value: BaseException | None, trace: object) -> None:
        if value is not None and jax.process_count() > 1:
            return  # the others may be gone or stuck: waiting for them would hide the error
        try:
            self.wait()
            processes.wait_for_all('the last checkpoint is sealed')
        except Exception as error:
            if value is None:
                raise
            _logger.warning('the last save failed, too: %s', error)  # the first error ends the run
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
        """Begin to save; `metrics`, if the step was evaluated, decide which step is the best.

        The state may be donated as soon as this returns. A step that is saved is kept, unless it
        was saved before its evaluation and `metrics` are here now. Raises UserError when the save
        before this one failed.
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
        """Set a saved step aside if it lacks the evaluation that is here now; say whether."""
        if not evaluated or self._manager.metrics(step) is not None:
            return False
        self._superseded.mkdir(parents=True, exist_ok=True)
        (self._directory / str(step)).rename(self._superseded / str(step))
        return True

    def _seal(self, step: int) -> None:
        """Wait for the commit of a step, then write its manifest."""
        directory = self._directory / str(step)
        while not (directory / _COMMITTED).exists():
            if self._stop_sealing.wait(0.02):
                return
        write_manifest(directory)

    def wait(self) -> None:
        """Wait until the save under way is committed and sealed; raise UserError if it failed."""
        sealing, self._sealing = self._sealing, None
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
            if sealing is not None:
                sealing.result()
        except Exception as error:  # of a disk or of tensorstore; Orbax has no type of its own
            self._stop_sealing.set()
            if processes.is_lost_peer(error):
                raise
            raise UserError(
                f'a checkpoint could not be written to {self._directory} '
                f'({str(error).partition(chr(10))[0]}); make room there, then start again'
            ) from error
        if sealing is not None and self._superseded.exists():
            self._superseded.rmtree()

    def _take_back_superseded(self) -> None:
        """Undo a replacement of a step that a kill cut short."""
        for old in self._superseded.iterdir() if self._superseded.exists() else ():
            new = self._directory / old.name
            if new.exists() and find_damage(new) is None:
                continue
            if new.exists():
                self._set_aside(int(old.name))
            old.rename(new)
        if self._superseded.exists():
            self._superseded.rmtree()

    def restore(
        self,
        abstract_state: Any,
        check_meta: Callable[[dict[str, Any]], None],
        *,
        which: str = 'latest',
        set_aside: bool = False,
    ) -> Restored | None:
        """Restore the newest sound checkpoint, or the best; None when there is none at all.

        Args:
          abstract_state: shape, dtype and sharding of every leaf; any mesh will do.
          check_meta: raises UserError when the saved run is not this one; called first.
          which: 'latest' or 'best'; process 0 looks and chooses for all.
          set_aside: move damaged and unfinished steps to WORKDIR/damaged, so that training can save
            those steps anew.

        Raises:
          UserError: the state does not fit, no checkpoint is sound although there are some, or the
            best is asked for and none was evaluated.
        """
        step = processes.from_first(lambda: self._choose(which, set_aside))
        if set_aside:
            self._manager.reload()
        return None if step is None else self._restore_step(step, abstract_state, check_meta)

    def _choose(self, which: str, set_aside: bool) -> int | None:
        """Return the step to restore, None when there is none, as `restore` says."""
        steps = sorted(self._manager.all_steps(), reverse=True)
        if which == 'best':
            best = self._manager.best_step()
            if steps and best is None:
                raise UserError(
                    f'no checkpoint in {self._directory} was evaluated, so none is the best; '
                    'use --config.evaluation.checkpoint=latest'
                )
            steps = [step for step in steps if step == best]
        bad: dict[int, str] = {}
        for step in steps:
            if (problem := find_damage(self._directory / str(step))) is None:
                break
            bad[step] = problem
            _logger.warning('checkpoint %d is not used: %s', step, problem)
        sound = [step for step in steps if step not in bad][:1]
        if bad and not sound and not self._is_first_and_unfinished(steps):
            raise UserError(
                f'{"the best" if which == "best" else "no"} checkpoint in {self._directory} is '
                f'{"not " if which == "best" else ""}sound: {steps[0]}: {bad[steps[0]]}; '
                'restore one from a copy, or choose another --workdir to start anew'
            )
        if set_aside:
            for step in bad:
                self._set_aside(step)
        return sound[0] if sound else None

    def _is_first_and_unfinished(self, steps: list[int]) -> bool:
        """Say whether all there is is one step that a kill left without its manifest."""
        return len(steps) == 1 and not (self._directory / str(steps[0]) / NAME).exists()

    def _restore_step(self, step, abstract_state, check_meta) -> Restored:
        meta = self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))
        check_meta(meta['meta'])
        tree = _to_tree(abstract_state)
        self._check_leaves(step, tree)
        state = self._manager.restore(
            step, args=ocp.args.Composite(state=ocp.args.StandardRestore(tree))
        )['state']
        evaluated = self._manager.metrics(step) is not None
        return Restored(step, _from_tree(abstract_state, state), meta['meta'], evaluated)

    def _check_leaves(self, step: int, tree: Any) -> None:
        """Compare names, shapes and dtypes before Orbax would cast a dtype in silence."""
        saved = self._manager.item_metadata(step)['state']
        have = {k: (v.shape, np.dtype(v.dtype)) for k, v in _flat(saved).items()}
        want = {k: (v.shape, np.dtype(v.dtype)) for k, v in _flat(tree).items()}
        for name in sorted(have.keys() | want.keys()):
            if have.get(name) != want.get(name):
                raise UserError(
                    f'checkpoint {self._directory / str(step)} does not fit this configuration: '
                    f'{name} is {_describe(have.get(name))} there and {_describe(want.get(name))} '
                    'here; use the configuration of that run or another --workdir'
                )

    def _set_aside(self, step: int) -> None:
        """Move a step to WORKDIR/damaged, beside what is there already."""
        self._damaged.mkdir(parents=True, exist_ok=True)
        names = (self._damaged / f'{step}-{count}' for count in itertools.count(1))
        (self._directory / str(step)).rename(next(n for n in names if not n.exists()))


def parameters_sha256(params: Any) -> str:
    """Return the SHA-256 over name, dtype, shape and little-endian bytes of all parameters."""
    digest = hashlib.sha256()
    for name, leaf in sorted(_flat(params).items()):
        array = processes.whole(leaf)
        array = array.astype(array.dtype.newbyteorder('<'))
        digest.update(f'{name} {array.dtype.name} {array.shape} '.encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _to_tree(state: Any) -> dict[str, Any]:
    """Return the state as nested dicts without empty nodes: what the checkpoint's names mean."""
    return traverse_util.unflatten_dict(
        traverse_util.flatten_dict(serialization.to_state_dict(state))
    )


def _from_tree(template: Any, tree: Mapping[str, Any]) -> Any:
    flat = traverse_util.flatten_dict(serialization.to_state_dict(template), keep_empty_nodes=True)
    flat |= traverse_util.flatten_dict(dict(tree))
    return serialization.from_state_dict(template, traverse_util.unflatten_dict(flat))


def _flat(tree: Any) -> dict[str, Any]:
    return traverse_util.flatten_dict(dict(tree), sep='.')


def _describe(leaf: tuple | None) -> str:
    return f'{leaf[1].name}{list(leaf[0])}' if leaf else 'absent'
