"""Measure how fast the program is, and where its time goes.

WHAT is one of
  step           images/s of the training step alone, and its share of the best matrix product
  layers         the time of each layer separately, forward and backward
  communication  the bytes that a training step sends between devices, by axis and layer
  input          images/s of reading, decoding and batching, without training
  end_to_end     training on the data set, compared with training on one batch on the device
  startup        seconds from the command to the end of the first step, by part
  prepare        images/s of decoding, resizing and writing photographs with one and two workers
  prediction     time and cost of a step on clusters, computed from operations and bytes

Measure on a machine that is otherwise idle.
Exit codes: 0 success, 1 a bug (traceback), 2 an error that you can mend (one line), 130 Ctrl-C.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from alexnet_jax import config_command
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
from alexnet_jax.command_line import Parser
from alexnet_jax.training.config import Config

_BENCHMARKS: dict[str, Callable[[Any, Config], dict[str, Any]]] = {
    'step': lambda options, config: (step.sweep if options.sweep else step.measure)(
        config, against=options.against
    ),
    'layers': lambda options, config: layers.measure(config),
    'communication': lambda options, config: communication.measure(config),
    'input': lambda options, config: input.measure(config, synthetic=options.synthetic),
    'end_to_end': lambda options, config: end_to_end.measure(config),
    'startup': lambda options, config: startup.measure(config),
    'prepare': lambda options, config: prepare.measure(options.source),
    'prediction': lambda options, config: prediction.predict(
        config, prediction.Assumptions.parse(options.assume)
    ),
}
_OWNERS = {  # the benchmark of each option that belongs to only one
    **{'against': 'step', 'sweep': 'step', 'synthetic': 'input', 'source': 'prepare'},
    'assume': 'prediction',
}


def _parser() -> Parser:
    name = 'python -m alexnet_jax.benchmark'
    usage = f'{name} WHAT [--config=FILE] [--config.section.field=value ...] [option ...]'
    parser = Parser(prog=name, usage=usage, description=__doc__ or '')
    add = parser.add_argument
    add('what', metavar='WHAT', choices=_BENCHMARKS, help='what to measure, as listed above')
    config_command.add_options(parser, default='configs/alexnet.py')
    add('--json', action='store_true', help='print one JSON object as the last line')
    add(
        '--against',
        choices=('torch', 'plain'),
        default='',
        help='step: compare with the same step in PyTorch (torch.compile) or plain Flax and optax',
    )
    add(
        '--sweep',
        action='store_true',
        help='step: measure both dtypes, from batch 128 up to the largest that fits in memory',
    )
    add(
        '--synthetic',
        type=int,
        default=0,
        metavar='N',
        help='input: read N generated images, as pixels and as JPEG, instead of the data set',
    )
    add(
        '--source',
        default='',
        metavar='DIR|TAR',
        help='prepare: a folder or a tar of photographs',
    )
    add(
        '--assume',
        type=lambda text: text.split(','),
        default=[],
        metavar='NAME=VALUE,...',
        help='prediction: replace assumptions, for example mfu=0.4,devices=8+64',
    )
    return parser


def run(argv: Sequence[str] | None) -> int:
    """Run the benchmark that the command line names; return the exit code."""
    parser = _parser()
    options, config = config_command.parse(parser, argv)
    for name, owner in _OWNERS.items():
        if options.what != owner and getattr(options, name) != parser.get_default(name):
            parser.error(f'--{name} is an option of {owner}, not of {options.what}')
    if options.synthetic < 0:
        parser.error(f'--synthetic={options.synthetic} must be at least 1')
    result = _BENCHMARKS[options.what](options, config)
    for name, value in result.items():
        print(_table(value) if name == 'rows' else f'{name:<40}{_words(value)}')
    if options.json:
        print(json.dumps(result))
    return 0


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows with the same keys as a table; text is aligned left, numbers right."""
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


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run as a command: one line and exit code 2 for a UserError."""
    config_command.run(run, argv)


if __name__ == '__main__':
    main()
