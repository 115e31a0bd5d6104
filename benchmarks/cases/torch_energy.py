"""The rivals of `zoo.energy` in PyTorch, eager: the network, its chain, a step of its training.

Channels first, as PyTorch's convolutions want it. Kernels are divided by their largest singular
value, estimated by one power iteration from a vector that is kept, once for a whole chain.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.cases.torch_on_lstm import DEVICE, finished

STEP, NOISE, CLIP = 10.0, 0.005, 0.01
L2, RATE, DECAY, EPSILON = 1.0, 3e-4, 0.999, 1e-8
STRIDES = (1, 2, 2, 2)


class Network:
    """Four convolutions and two linear layers for images of 28 × 28."""

    def __init__(self, features: int):
        f = features
        shapes = [(f, 1, 3, 3), (f, f, 4, 4), (2 * f, f, 4, 4), (4 * f, 2 * f, 4, 4)]
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator).to(DEVICE)

        self.kernels = [normal(*shape) for shape in [*shapes, (2 * f, 64 * f)]]
        self.vectors = [normal(len(kernel)) for kernel in self.kernels]
        self.bias = torch.zeros(2 * f, device=DEVICE)
        self.output = normal(2 * f) / (2 * f) ** 0.5
        self.output_bias = torch.zeros(1, device=DEVICE)
        self.parameters = [*self.kernels, self.bias, self.output, self.output_bias]

    def record(self, wanted: bool) -> None:
        """Whether gradients of the parameters are recorded."""
        for parameter in self.parameters:
            parameter.requires_grad_(wanted)

    def normalized(self, *, advance: bool) -> list[torch.Tensor]:
        """The kernels divided by their norms."""
        result = []
        for number, (kernel, vector) in enumerate(zip(self.kernels, self.vectors, strict=True)):
            matrix = kernel.flatten(1)
            with torch.no_grad():
                left = torch.nn.functional.normalize(vector @ matrix, dim=0)
                right = torch.nn.functional.normalize(matrix @ left, dim=0)
            if advance:
                self.vectors[number] = right
            result.append(kernel / (right @ matrix @ left))
        return result

    def __call__(self, x: torch.Tensor, kernels: list[torch.Tensor]) -> torch.Tensor:
        """``[B, 1, 28, 28]`` to ``[B]``, padded as TensorFlow does."""
        activation = torch.nn.functional.leaky_relu
        for kernel, stride in zip(kernels[:4], STRIDES, strict=True):
            if x.shape[-1] % 2 and stride == 2:
                x = torch.nn.functional.pad(x, (1, 2, 1, 2))
                x = torch.nn.functional.conv2d(x, kernel, stride=stride)
            else:
                x = torch.nn.functional.conv2d(x, kernel, stride=stride, padding=1)
            x = activation(x, 0.2)
        hidden = torch.nn.functional.linear(x.flatten(1), kernels[4], self.bias)
        return activation(hidden, 0.2) @ self.output + self.output_bias


def run(network: Network, x: torch.Tensor, num_steps: int) -> torch.Tensor:
    """The chain of the original: noise, gradient, clip, box."""
    network.record(False)
    kernels = network.normalized(advance=False)
    for _ in range(num_steps):
        x = (x + NOISE * torch.randn_like(x)).requires_grad_(True)
        (gradient,) = torch.autograd.grad(network(x, kernels).sum(), x)
        x = (x.detach() - STEP * gradient.clamp(-CLIP, CLIP)).clamp(0, 1)
    return x


def tensor(images: np.ndarray) -> torch.Tensor:
    return torch.tensor(images.transpose(0, 3, 1, 2).copy(), device=DEVICE)


def chain(features: int, start: np.ndarray, *, num_steps: int) -> Callable[[], Any]:
    """A thunk of the chain's end."""
    network, first = Network(features), tensor(start)
    return lambda: finished(run(network, first, num_steps))


def training_step(
    features: int, images: np.ndarray, start: np.ndarray, *, num_steps: int
) -> Callable[[], Any]:
    """A thunk of a step: chain, loss, gradient, clipped Adam without a first moment."""
    network, data, first = Network(features), tensor(images), tensor(start)
    squares = [torch.zeros_like(p) for p in network.parameters]
    steps = 0

    def thunk() -> Any:
        nonlocal steps
        steps += 1
        samples = run(network, first, num_steps)
        network.record(True)
        both = network(torch.cat([data, samples]), network.normalized(advance=True))
        plus, minus = both.chunk(2)
        loss = plus.mean() - minus.mean() + L2 * (plus.square().mean() + minus.square().mean())
        gradients = torch.autograd.grad(loss, network.parameters)
        network.record(False)
        correction = 1 - DECAY**steps
        for parameter, gradient, square in zip(network.parameters, gradients, squares, strict=True):
            bound = 3 * (square / correction).sqrt() + 0.1
            clipped = gradient.clamp(-bound, bound)
            square.mul_(DECAY).addcmul_(clipped, clipped, value=1 - DECAY)
            rate = RATE * correction**0.5
            parameter.sub_(rate * clipped / (square.sqrt() + EPSILON))
        return finished((loss.detach(), samples))

    return thunk
