"""The typed configuration of a run: all its sections, and the checks across them."""

import dataclasses
import importlib.util
import pathlib
import typing
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
from absl import flags
from ml_collections import config_flags

from alexnet_jax.checkpoint.checkpoints import CheckpointConfig
from alexnet_jax.input.augment import AugmentConfig
from alexnet_jax.input.sources import DataConfig
from alexnet_jax.network.specification import ModelConfig
from alexnet_jax.parallel.mesh import ParallelConfig
from alexnet_jax.runtime import config as sections
from alexnet_jax.runtime.config import PLACE, Rule, Section, field, is_integer
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.runtime.run_log import LogConfig
from alexnet_jax.training.evaluate import EvaluationConfig
from alexnet_jax.training.optim import OptimConfig
from alexnet_jax.training.plan import TrainingConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Section):
    """The configuration of a run; `configs/alexnet.py` says what each field means."""

    # The role is PLACE, because runs that differ only in the seed belong to one experiment.
    seed: int = field(
        Rule(lambda v: is_integer(v) and 0 <= v < 2**32, 'an integer from 0 to 2**32 - 1'),
        role=PLACE,
        resume=False,
    )
    model: ModelConfig
    parallel: ParallelConfig
    data: DataConfig
    augment: AugmentConfig
    optim: OptimConfig
    training: TrainingConfig
    evaluation: EvaluationConfig
    checkpoint: CheckpointConfig
    log: LogConfig

    def check(self) -> None:
        """Raise UserError where sections contradict each other."""
        self._check_division()
        crop_px, image_shape = self.augment.crop_px, self.data.image_shape
        if image_shape and crop_px > min(image_shape[:2]):
            raise UserError(
                f'config.augment.crop_px = {crop_px} is larger than the images, '
                f'data.image_shape = {image_shape}; lower it'
            )
        drops = self.optim.schedule == 'plateau' and self.optim.plateau_max_drops > 0
        if drops and not self.training.eval_every_epochs:
            raise UserError(
                "config.optim.schedule = 'plateau' drops the rate after evaluations, but "
                'config.training.eval_every_epochs = 0 means that there are none; set it above 0, '
                'or choose another schedule'
            )
        self._check_named_layers()

    def _check_division(self) -> None:
        """Raise UserError unless the fully connected layers can be divided over the devices."""
        model, devices = self.model, self.parallel.model
        for name, layer in (('fc6', model.fc6), ('fc7', model.fc7)):
            if layer.features % max(devices, model.towers):
                raise UserError(
                    f'config.model.{name}.features = {layer.features} must be a multiple of '
                    f'parallel.model = {devices} and of model.towers = {model.towers}'
                )
        if model.fc6.features == model.fc7.features == 0 and devices > model.towers:
            raise UserError(
                f'config.parallel.model = {devices} splits the fully connected layers, but this '
                f'network has none before fc8; set --config.parallel.model={model.towers}'
            )

    def _check_named_layers(self) -> None:
        """Raise UserError for a rate or a multiplier of a layer that the network does not have."""
        optim = self.optim
        named = [('events', layer) for _, layer, _ in optim.events]
        named += [('lr_multipliers', name) for name, _ in optim.lr_multipliers]
        named += [('weight_decay_multipliers', name) for name, _ in optim.weight_decay_multipliers]
        for setting, name in named:
            layer = name.partition('.')[0]
            if getattr(getattr(self.model, layer, None), 'features', None) == 0:
                raise UserError(
                    f'config.optim.{setting} names {name}, but config.model.{layer}.features = 0 '
                    f'leaves that layer out; remove it from {setting}'
                )

    def to_dict(self) -> dict[str, Any]:
        """Return the nested mapping that is saved with a run and that `from_dict` reads."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> 'Config':
        """Make the configuration; raise UserError, in one line, for the first mistake."""
        return sections.make(cls, values)

    def changes_since(self, saved: Mapping[str, Any]) -> dict[str, str]:
        """Return the changes since the configuration of a saved run, `{field: 'old -> new'}`.

        A field that only one of the two configurations has, and that has no `off` value, is not
        compared. Raises UserError for a changed field that a resumed run may not change.
        """
        declared = sections.fields(type(self))
        changed = sections.differences(type(self), saved, self.to_dict())
        changed = {name: pair for name, pair in changed.items() if None not in pair}
        for name, (before, after) in changed.items():
            if not declared[name].metadata['resume']:
                raise UserError(
                    f'config.{name} is {after!r}, but the run in this workdir has {before!r}; '
                    f'set it back or choose another --workdir'
                )
        return {name: f'{before!r} -> {after!r}' for name, (before, after) in changed.items()}


def load(file: pathlib.Path, overrides: Sequence[str] = ()) -> Config:
    """Run a configuration file, Python with a `get_config()`, and apply `--config.field=value`s.

    Raises UserError, in one line, for a file that does not exist or fails, and for an override of a
    field that does not exist or has another type.
    """
    if not file.is_file():
        raise UserError(f'--config={file} is not a file; for example --config=configs/digits.py')
    for override in overrides:
        path, _, value = override.removeprefix('--config.').partition('=')
        sections.require_field(Config, path)
        kind = sections.fields(Config)[path].type
        if typing.get_origin(kind) is tuple and value.lstrip().startswith('{'):
            # A set has no order, and ml_collections would take its elements in any.
            raise UserError(f'{override}: config.{path} is a tuple, such as (1, 2), or ()')
    try:
        values = _override(_get_config(file), overrides)
    except Exception as error:  # of ml_collections, or raised by the file
        missing = isinstance(error, ModuleNotFoundError) and error.name == 'configs'
        hint = '; run the command in the root of the checkout' if missing else ''
        raise UserError(f'--config={file}: {_one_line(error)}{hint}') from error
    return Config.from_dict(values.to_dict())


def _get_config(file: pathlib.Path) -> ml_collections.ConfigDict:
    spec = importlib.util.spec_from_file_location('config_file', file)
    if spec is None or spec.loader is None:
        raise ValueError('it is not a Python file; its name must end in .py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


def _override(
    values: ml_collections.ConfigDict, overrides: Sequence[str]
) -> ml_collections.ConfigDict:
    """Apply the overrides as `ml_collections.config_flags` does, each read by its field's type."""
    argv = ['', *overrides]
    own_flags = flags.FlagValues()
    config_flags.DEFINE_config_dict('config', values, flag_values=own_flags, sys_argv=argv)
    own_flags(argv)
    return typing.cast(ml_collections.ConfigDict, own_flags['config'].value)


def _one_line(error: Exception) -> str:
    kind = '' if isinstance(error, flags.Error) else f'{type(error).__name__}: '
    return kind + ' '.join(str(error).split())
