"""Measure the program: how fast it is and where the time goes.

python -m alexnet_jax.benchmark WHAT [--config=FILE] [--config.section.field=value ...]
    [--data_dir=DIR] [--against=torch|plain] [--sweep] [--synthetic=N] [--source=DIR|TAR]
    [--assume=NAME=VALUE,...] [--json]

    step           images a second of the training step alone, without reading data, and its part
                   of the device's fastest matrix products; --against=torch or plain: beside it the
                   same step by PyTorch (torch.compile, channels_last) or by plain Flax and optax;
                   --sweep: float32 and bfloat16, batch 128, 1024 and up to the largest that fits
    layers         where the time of a step goes: each layer by itself, forward and backward
    communication  what a training step sends between devices, by axis and layer, on any mesh
    input          images a second of the host's part: records read, decoded and made into batches;
                   --synthetic: of N made images, as pixels and as JPEG
    end_to_end     training steps on the data set beside steps on one batch that is on the device
    startup        seconds from the command to the end of the first step, and what takes them
    prepare        photographs of --source decoded and resized, written as records by one and two
                   workers
    prediction     step time, efficiency and cost on clusters, computed from counted operations and
                   bytes; --assume changes what it takes for granted

Without --config it is configs/alexnet.py. Measure on a machine that does nothing else.
Exit codes: 0 done, 1 a bug (traceback), 2 yours to mend (one line).
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_collections
from absl import flags

from alexnet_jax import command_line
from alexnet_jax.benchmarks import (
    communication,
    end_to_end,
    input,
    layers,
    prediction,
    prepare,
    startup,
    step,
)

_JSON = flags.DEFINE_bool('json', False, 'Print one JSON object as the last line.')
_AGAINST = flags.DEFINE_enum(
    'against', '', ['', 'torch', 'plain'], 'For step: what to compare with.'
)
_SWEEP = flags.DEFINE_bool('sweep', False, 'For step on an accelerator: dtypes and batch sizes.')
_SOURCE = flags.DEFINE_string('source', '', 'Photographs for prepare: a folder or a tar.')
_SYNTHETIC = flags.DEFINE_integer(
    'synthetic', 0, 'N images for input, as pixels and as JPEG, in place of the data set.'
)
_ASSUME = flags.DEFINE_list('assume', [], 'For a prediction: NAME=VALUE,... as it prints them.')

_BENCHMARKS: dict[str, Callable[[ml_collections.ConfigDict], dict[str, Any]]] = {
    'step': lambda config: (step.sweep if _SWEEP.value else step.measure)(
        config, against=_AGAINST.value
    ),
    'layers': layers.measure,
    'communication': communication.measure,
    'input': lambda config: input.measure(config, synthetic=_SYNTHETIC.value),
    'end_to_end': end_to_end.measure,
    'startup': startup.measure,
    'prepare': lambda config: prepare.measure(_SOURCE.value),
    'prediction': lambda config: prediction.predict(
        config, prediction.Assumptions.parse(_ASSUME.value)
    ),
}


def run(argv: Sequence[str]) -> int:
    """Do the benchmark that the command line names; return the exit code."""
    result = _BENCHMARKS[argv[1]](command_line.load_config())
    for name, value in result.items():
        print(_table(value) if name == 'rows' else f'{name:<40}{_words(value)}')
    if _JSON.value:
        print(json.dumps(result))
    return 0


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Write rows of the same keys below each other, texts to the left, numbers to the right."""
    lines = [list(rows[0]), *([_words(v) for v in row.values()] for row in rows)] if rows else []
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    texts = [isinstance(value, str) for row in rows[:1] for value in row.values()]
    return '\n'.join(
        '  '.join(
            cell.ljust(width) if text else cell.rjust(width)
            for cell, width, text in zip(line, widths, texts, strict=True)
        ).rstrip()
        for line in lines
    )


def _words(value: Any) -> str:
    if isinstance(value, float):
        return f'{value:,.0f}' if abs(value) >= 1000 else f'{value:.4g}'
    return f'{value:,}' if type(value) is int else str(value)


def main() -> None:
    """Run as a command: one line and exit code 2 for a UserError."""
    command_line.run(
        run, __doc__ or '', default_config='configs/alexnet.py', words=list(_BENCHMARKS)
    )


if __name__ == '__main__':
    main()
