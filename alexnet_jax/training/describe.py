"""Describe a run without running it: its configuration, mesh, parameters, FLOPs and memory."""

import json
import math
from collections.abc import Iterator

import jax

from alexnet_jax.network.parameters import count_macs, training_flops
from alexnet_jax.training.experiment import Experiment


def describe(experiment: Experiment) -> str:
    """Compile one training step without running it, and return the description."""
    return '\n'.join(
        [
            json.dumps(experiment.config.to_dict(), indent=2, sort_keys=True),
            '',
            *_mesh_lines(experiment),
            '',
            *_parameter_lines(experiment),
            '',
            *_flops_lines(experiment),
            '',
            *_memory_lines(experiment),
        ]
    )


def _mesh_lines(experiment: Experiment) -> Iterator[str]:
    mesh, plan = experiment.mesh, experiment.plan
    device = mesh.devices.flat[0]
    sizes = ' x '.join(f'{name} {size}' for name, size in mesh.shape.items())
    yield f'mesh: {sizes}, {mesh.size} of {jax.device_count()} devices ({device.device_kind})'
    yield (
        f'steps: {plan.total_steps:,} of batch {plan.batch_size} over {plan.num_examples:,} images '
        f'({plan.epoch(plan.total_steps):.2f} epochs)'
    )


def _parameter_lines(experiment: Experiment) -> Iterator[str]:
    params, specs = experiment.abstract_state().params, experiment.specs.params
    yield f'{"parameter":<14}{"shape":<22}{"split over":<34}{"count":>12}{"on a device":>14}'
    total = here = 0
    for layer, leaves in params.items():
        for name, leaf in leaves.items():
            local = leaf.sharding.shard_shape(leaf.shape)
            total, here = total + leaf.size, here + math.prod(local)
            yield (
                f'{layer + "." + name:<14}{leaf.shape!s:<22}{_words(specs[layer][name]):<34}'
                f'{leaf.size:>12,}{math.prod(local):>14,}'
            )
    yield f'{"total":<70}{total:>12,}{here:>14,}'


def _words(spec: jax.sharding.PartitionSpec) -> str:
    split = [f'axis {axis}: {name}' for axis, name in enumerate(spec) if name]
    return ', '.join(split).replace("('tower', 'shard')", 'tower x shard') or 'not split'


def _flops_lines(experiment: Experiment) -> Iterator[str]:
    macs = count_macs(experiment.model, experiment.crop_shape)
    for name, count in macs.items():
        yield f'{name:<14}{count:>16,} multiply-accumulates an image, forward'
    yield f'{"total":<14}{sum(macs.values()):>16,}'
    yield f'training step: {training_flops(macs) / 1e9:.4f} GFLOP an image'


def _memory_lines(experiment: Experiment) -> Iterator[str]:
    compiled = experiment.train_step.lower(*experiment.abstract_arguments()).compile()
    memory = compiled.memory_analysis()
    unshared = memory.output_size_in_bytes - memory.alias_size_in_bytes
    mib = 2**20
    yield 'memory of the compiled training step, on each device:'
    yield f'  state, batch, statistics {memory.argument_size_in_bytes / mib:>10,.1f} MiB'
    yield f'  temporary                {memory.temp_size_in_bytes / mib:>10,.1f} MiB'
    yield f'  result, not shared       {unshared / mib:>10,.1f} MiB'
