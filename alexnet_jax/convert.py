"""Convert a run or the weights of other programs to a weights file, and these to PyTorch.

python -m alexnet_jax.convert IN OUT [--from=FORMAT] [--to=FORMAT] [--dtype=float16] ...
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from alexnet_jax import command_line
from alexnet_jax.command_line import Parser
from alexnet_jax.inference import formats
from alexnet_jax.runtime import storage
from alexnet_jax.training import config as config_lib


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code (see `command_line.run`)."""
    return command_line.run(lambda: _convert(**vars(_parser().parse_args(argv))))


def _parser() -> Parser:
    parser = Parser(
        prog='python -m alexnet_jax.convert',
        description='Convert a run or the weights of other programs to one file.',
    )
    parser.add_argument(
        'source',
        metavar='IN',
        help='the workdir of a run, a safetensors file of this project, of torchvision or of the '
        'module in docs/weights.md, a .caffemodel, or bvlcalexnet-*.onnx of the ONNX model zoo',
    )
    parser.add_argument(
        '--checkpoint', default='latest', help="of a run: 'latest' (default), 'best' or a step"
    )
    parser.add_argument(
        'output', metavar='OUT', help='a .safetensors, .stablehlo or .onnx file; it is replaced'
    )
    parser.add_argument(
        '--from',
        dest='source_format',
        default='',
        choices=formats.READS,
        help='the format of IN (default: found by its content)',
    )
    parser.add_argument(
        '--to',
        default='',
        choices=formats.WRITES,
        help='alexnet_jax, a weights file of this project; pytorch, the state dict of the module '
        'in docs/weights.md; stablehlo; onnx (default: by the suffix of OUT, and alexnet_jax for '
        '.safetensors)',
    )
    parser.add_argument('--dtype', default='float32', choices=formats.DTYPES, help='of the weights')
    parser.add_argument(
        '--names',
        default='',
        metavar='FILE',
        help='the names of the classes, one a line (default: those in IN, or the synsets of '
        'ILSVRC-2012)',
    )
    parser.add_argument(
        '--mean',
        default='',
        metavar='B,G,R',
        help='of a .caffemodel or .onnx: the mean of blue, green and red, or a .binaryproto file '
        '(default: those in IN, or 104,117,123)',
    )
    parser.add_argument(
        '--config',
        default='',
        metavar='FILE',
        help='of a PyTorch file without a description: its configuration (default: that of the '
        'paper, with the sizes of the weights)',
    )
    return parser


def _convert(
    source: str,
    output: str,
    checkpoint: str,
    source_format: str,
    to: str,
    dtype: str,
    names: str,
    mean: str,
    config: str,
) -> None:
    origin, target = storage.resolve(source, 'IN'), storage.resolve(output, 'OUT')
    formats.check_output(target, origin)
    to = formats.format_of_output(target, to, dtype)
    wishes = formats.Wishes(
        checkpoint=checkpoint,
        format=source_format,
        config=config_lib.load(Path(config)).to_dict() if config else None,
        mean=formats.mean_in(mean) if mean else None,
        class_names=formats.names_in(storage.resolve(names, '--names')) if names else (),
    )
    trained, kind = formats.read(origin, wishes)
    known = f', {formats.recognise(origin)}' if kind != formats.OURS else ''
    print(f'read {origin}: {kind}{known}')
    formats.write(target, trained, to, dtype)
    count = sum(leaf.size for leaves in trained.network.values() for leaf in leaves.values())
    print(
        f'wrote {target}: {to}, {dtype}, {count:,} parameters, {len(trained.class_names):,} classes'
    )


if __name__ == '__main__':
    sys.exit(main())
