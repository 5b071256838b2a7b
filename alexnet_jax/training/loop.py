"""The training loop, from the first step to the last."""

import collections
import contextlib
import dataclasses
from typing import Any

import jax
from etils import epath

from alexnet_jax.checkpoint import pretrained
from alexnet_jax.checkpoint.checkpoints import Checkpoints
from alexnet_jax.runtime import memory
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.runtime.run_log import RunLog
from alexnet_jax.training import guard, provenance
from alexnet_jax.training.experiment import Experiment
from alexnet_jax.training.optim import require_no_rise
from alexnet_jax.training.step import TrainState

_IN_FLIGHT = 2  # steps dispatched ahead of the one whose loss is checked


def train(experiment: Experiment, workdir: epath.Path) -> int:
    """Train until the configured end, from the newest checkpoint if there is one.

    Returns the exit code: 0, or 128 + the signal's number when a signal stopped the run, whose
    state is then saved. Raises UserError for errors that the user can mend.
    """
    provenance.require_same_in_all_processes(experiment, 'train')
    config, plan = experiment.config, experiment.plan
    with contextlib.ExitStack() as stack:
        stack.enter_context(guard.workdir_lock(workdir))
        guard.use_workdir(workdir)
        stop = stack.enter_context(guard.StopSignal())
        checkpoints = stack.enter_context(Checkpoints(workdir, config.checkpoint))
        state, start, evaluated, event = _resume_or_init(experiment, checkpoints)
        if start > plan.total_steps or (start == plan.total_steps and evaluated):
            if jax.process_index() == 0:
                print(f'nothing to train: {workdir} is at step {start} of {plan.total_steps}')
            return 0
        if jax.process_index() == 0:
            provenance.save(experiment, workdir)
        log = stack.enter_context(
            RunLog(
                workdir,
                config.log,
                start_step=start,
                total_steps=plan.total_steps,
                described=config,
            )
        )
        run = _Run(experiment, checkpoints, log, stop)
        log.event(start, plan.epoch(start), **event)
        if plan.eval_due(start) and not evaluated:
            state = run.evaluate_and_save(start, state)
        batches = experiment.train_batches(range(start, plan.total_steps))
        stack.enter_context(contextlib.closing(batches))
        for step in range(start + 1, plan.total_steps + 1):
            if stop.due():
                break
            guard.expect(f'step {step}', slow=step == start + 1)
            log.advance(step - 1, state)
            with log.spending('data'):
                batch = next(batches)
            state, metrics = experiment.train_step(state, batch, experiment.statistics)
            run.note(step, metrics)
            if plan.eval_due(step):
                state = run.evaluate_and_save(step, state)
            elif checkpoints.due(step):
                run.save(step, state)
        if stop.received:
            step = int(state.step)
            run.save(step, state)
            log.event(step, plan.epoch(step), 'stopped', signal=stop.received)
            return stop.exit_code
        log.advance(plan.total_steps, state)
        return 0


@dataclasses.dataclass
class _Run:
    """The work of the loop between steps: logging, saving and evaluating."""

    experiment: Experiment
    checkpoints: Checkpoints
    log: RunLog
    stop: guard.StopSignal
    pending: collections.deque = dataclasses.field(default_factory=collections.deque)

    def note(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Queue a step's metrics and log those of an earlier step, which keeps the devices busy."""
        self.pending.append((step, metrics))
        if len(self.pending) > _IN_FLIGHT:
            self._log_oldest()

    def _log_oldest(self) -> None:
        """Check the loss of the oldest queued step, and log its metrics where that is due."""
        step, on_device = self.pending.popleft()
        metrics = {name: value.item() for name, value in jax.device_get(on_device).items()}
        rate = metrics['train/learning_rate']
        guard.require_finite_loss(step, metrics['train/loss'], f'(learning rate {rate:g})')
        guard.note_step()
        training, plan = self.experiment.config.training, self.experiment.plan
        if step % training.log_every_steps == 0 or step in (1, plan.total_steps):
            self.log.train(step, plan.epoch(step), metrics, training.batch_size)

    def save(self, step: int, state: TrainState, metrics: dict[str, float] | None = None) -> None:
        """Save the state, after checking that all losses so far and the parameters are finite."""
        while self.pending:
            self._log_oldest()
        guard.expect(f'the save of step {step}', slow=True)
        with self.log.spending('other'):
            guard.require_finite_parameters(step, state.network)
            self.checkpoints.save(step, state, _meta(self.experiment), metrics)
            memory.trim()

    def evaluate_and_save(self, step: int, state: TrainState) -> TrainState:
        """Evaluate, update the plateau rule and save; a signal midway leaves the state as it is."""
        while self.pending:
            self._log_oldest()
        experiment = self.experiment
        last = step == experiment.plan.total_steps
        views = (
            experiment.config.evaluation.final_views if last else experiment.config.evaluation.views
        )
        with self.log.spending('other'):
            metrics = experiment.evaluate(state.network, views, self.stop.due)
            if metrics is not None and state.ema:
                raw = experiment.evaluate(state.raw_network, views, self.stop.due)
                metrics = raw and metrics | {f'eval_raw/{k[5:]}': v for k, v in raw.items()}
            if metrics is None:
                return state
            guard.require_finite_loss(step, metrics['eval/loss'], 'in the evaluation')
            plateau = experiment.optimizer.after_evaluation(
                jax.device_get(state.plateau), metrics['eval/top1_error']
            )
            # Through the host: jax 0.10.2 wrongly copies an array from a device of one process to
            # the devices of several.
            plateau = jax.device_put(jax.device_get(plateau), experiment.state_shardings.plateau)
        state = state.replace(plateau=plateau)
        self.log.evaluation(step, experiment.plan.epoch(step), metrics)
        self.save(step, state, metrics)
        return state


def _resume_or_init(
    experiment: Experiment, checkpoints: Checkpoints
) -> tuple[TrainState, int, bool, dict[str, Any]]:
    """Return the state, its step, whether that step was evaluated, and the event to log."""
    guard.expect('reading the last checkpoint', slow=True)
    changes: dict[str, str] = {}
    restored = checkpoints.restore(
        experiment.abstract_state(),
        lambda meta: changes.update(_check_same_run(experiment, meta)),
        set_aside=True,
    )
    if restored is None:
        state, event = experiment.init_state(), {'name': 'started', **_devices(experiment)}
        if source := experiment.config.training.init_from:
            assert experiment.dataset is not None
            classes = str(experiment.dataset.fingerprint()['class_names'])
            wanted = experiment.abstract_state().network
            network, loaded = pretrained.init_network(wanted, state.network, source, classes)
            state, event = state.with_network(network), {**event, **loaded}
        return state, 0, False, event
    require_no_rise(
        restored.meta['config']['optim'],
        experiment.config.optim,
        experiment.plan,
        restored.step,
        jax.device_get(restored.state.plateau),
    )
    event = {'name': 'resumed', **_devices(experiment), **changes}
    return restored.state, restored.step, restored.evaluated, event


def _check_same_run(experiment: Experiment, meta: dict[str, Any]) -> dict[str, str]:
    """Return what changed since the checkpoint; raise UserError for a change that may not be."""
    changes = experiment.config.changes_since(meta['config'])
    assert experiment.dataset is not None
    for name, value in experiment.dataset.fingerprint().items():
        if not name.startswith('eval_') and meta['data'].get(name) != value:
            raise UserError(
                f'the data set has changed: {name} is {value!r} and was {meta["data"].get(name)!r} '
                'when this run was saved; restore the old data or choose another --workdir'
            )
    return changes


def _meta(experiment: Experiment) -> dict[str, Any]:
    assert experiment.dataset is not None
    return {'config': experiment.config.to_dict(), 'data': experiment.dataset.fingerprint()}


def _devices(experiment: Experiment) -> dict[str, Any]:
    device = experiment.mesh.devices.flat[0]
    shape = 'x'.join(str(size) for size in experiment.mesh.devices.shape)
    used = f'{experiment.mesh.size} of {jax.device_count()}'
    return {'mesh': shape, 'devices': used, 'device_kind': device.device_kind}
