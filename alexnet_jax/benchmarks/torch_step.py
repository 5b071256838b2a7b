"""The same training step in PyTorch, in its own process that takes commands on standard input.

`benchmark step --against=torch` starts python -m alexnet_jax.benchmarks.torch_step SETTINGS.
SETTINGS is JSON: `problem`, an npz file of weights, images and labels; `size` of the matrix
product; `dtype`, `tf32`, `learning_rate`, `momentum`, `weight_decay`, `lrn`, `towers`,
`convolutions`. Each line of standard input is a JSON list, `["train", dropout, steps]`,
`["product", times]` or `["reset"]`. The answer is a line of JSON, the losses, when the work is
done.
"""

import contextlib
import json
import sys
from typing import Any

import numpy as np
import torch
from torch.nn import functional

LAYOUT = torch.channels_last


class Network(torch.nn.Module):
    """The network of `network/model.py`: grouped convolutions, LRN within each tower."""

    def __init__(self, weights: dict[str, torch.Tensor], settings: dict[str, Any]):
        super().__init__()
        self.convolutions, self.lrn = settings['convolutions'], settings['lrn']
        self.towers = settings['towers']
        self.parameters_by_name = torch.nn.ParameterDict(
            {name.replace('/', '_'): torch.nn.Parameter(value) for name, value in weights.items()}
        )

    def forward(self, x: torch.Tensor, dropout: float) -> torch.Tensor:
        """Return the logits of images [batch, C, H, W]."""
        p = self.parameters_by_name
        for name, layer in self.convolutions.items():
            before, after = layer['padding']
            if before == after:
                pad = before
            else:
                x, pad = functional.pad(x, (before, after, before, after)), 0
            weight, bias = p[f'{name}_kernel'], p[f'{name}_bias']
            x = functional.conv2d(x, weight, bias, layer['stride'], pad, groups=layer['groups'])
            for operation in layer['after']:
                if operation == 'activation':
                    x = functional.relu(x)
                elif operation == 'lrn':
                    x = torch.cat([self.norm(own) for own in x.chunk(self.towers, dim=1)], dim=1)
                elif operation == 'pool':
                    x = functional.max_pool2d(x, layer['pool_window'], layer['pool_stride'])
        x = x.permute(0, 2, 3, 1).flatten(1)
        for name in ('fc6', 'fc7'):
            x = functional.relu(x @ p[f'{name}_kernel'] + p[f'{name}_bias'])
            if dropout:
                x = x * (torch.rand_like(x) >= dropout)
        return x @ p['fc8_kernel'] + p['fc8_bias']

    def norm(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise within one tower; PyTorch divides alpha by n."""
        n, alpha = self.lrn['n'], self.lrn['alpha']
        return functional.local_response_norm(x, n, n * alpha, self.lrn['beta'], self.lrn['k'])


class Worker:
    """The commands that standard input may give."""

    def __init__(self, settings: dict[str, Any]):
        self.settings = settings
        self.device = 'cuda' if torch.cuda.is_available() else 'cpu'
        self.dtype = getattr(torch, settings['dtype'])
        torch.set_float32_matmul_precision('high' if settings['tf32'] else 'highest')
        torch.backends.cudnn.allow_tf32 = settings['tf32']
        with np.load(settings['problem'], allow_pickle=False) as problem:
            self.arrays = {name: torch.from_numpy(problem[name]) for name in problem.files}
        images = self.arrays.pop('images').permute(0, 3, 1, 2)
        self.images = images.to(self.device, memory_format=LAYOUT)
        self.labels = self.arrays.pop('labels').long().to(self.device)
        side = (settings['size'], settings['size'])
        self.factors = [torch.randn(side, dtype=self.dtype, device=self.device) for _ in range(2)]
        self.reset()

    def reset(self) -> list[float]:
        """Start again from the initial weights."""
        weights = {name: self.weight(value) for name, value in self.arrays.items()}
        network = Network(weights, self.settings)
        self.optimizer = torch.optim.SGD(
            network.parameters(),
            lr=self.settings['learning_rate'],
            momentum=self.settings['momentum'],
            weight_decay=self.settings['weight_decay'],
            fused=True,
        )
        self.network = torch.compile(network, dynamic=False)
        return []

    def weight(self, value: torch.Tensor) -> torch.Tensor:
        """Return a weight in PyTorch's layout: HWIO becomes OIHW, with channels last in memory."""
        if value.ndim != 4:
            return value.to(self.device, copy=True)
        value = value.permute(3, 2, 0, 1)
        return value.to(self.device, memory_format=LAYOUT, copy=True)

    def train(self, dropout: float, steps: int) -> list[float]:
        """Do some training steps, and return their losses."""
        cast = contextlib.nullcontext()
        if self.dtype != torch.float32:
            cast = torch.autocast(self.device, self.dtype)
        losses = []
        for _ in range(steps):
            with cast:
                logits = self.network(self.images, dropout)
            loss = functional.cross_entropy(logits.float(), self.labels)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            losses.append(loss.detach())
        return [loss.item() for loss in losses]  # waits for the device

    def product(self, times: int) -> list[float]:
        """Multiply two square matrices `times` times."""
        for _ in range(times):
            result = self.factors[0] @ self.factors[1]
        return [result[0, 0].item()]


def main() -> None:
    """Answer each line of standard input."""
    worker = Worker(json.loads(sys.argv[1]))
    print(json.dumps([torch.__version__, worker.device]), flush=True)
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        work = {'train': worker.train, 'product': worker.product, 'reset': worker.reset}[name]
        print(json.dumps(work(*arguments)), flush=True)


if __name__ == '__main__':
    main()
