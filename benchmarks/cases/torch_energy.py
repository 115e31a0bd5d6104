"""The rivals of `zoo.energy` in PyTorch, eager: the network, its chain, a step of its training.

Channels first, as PyTorch's convolutions want it, padded as TensorFlow does. In evaluation mode the
vectors of the spectral normalisation stay, and kernels are normalised once per chain.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from benchmarks.cases.torch_on_lstm import DEVICE, finished

STEP, NOISE, CLIP = 10.0, 0.005, 0.01
L2, RATE, DECAY = 1.0, 3e-4, 0.999


def make_network(features: int) -> nn.Module:
    """Four convolutions and two linear layers for images ``[B, 1, 28, 28]``."""
    f, normalize = features, parametrizations.spectral_norm

    def convolution(before: int, after: int, size: int, **options: int) -> nn.Module:
        return normalize(nn.Conv2d(before, after, size, bias=False, **options))

    return nn.Sequential(
        convolution(1, f, 3, padding=1),
        nn.LeakyReLU(0.2),
        convolution(f, f, 4, stride=2, padding=1),
        nn.LeakyReLU(0.2),
        convolution(f, 2 * f, 4, stride=2, padding=1),
        nn.LeakyReLU(0.2),
        nn.ZeroPad2d((1, 2, 1, 2)),
        convolution(2 * f, 4 * f, 4, stride=2),
        nn.LeakyReLU(0.2),
        nn.Flatten(),
        normalize(nn.Linear(64 * f, 2 * f)),
        nn.LeakyReLU(0.2),
        nn.Linear(2 * f, 1),
    ).to(DEVICE)


def run(network: nn.Module, x: torch.Tensor, num_steps: int) -> torch.Tensor:
    """The chain of the original: noise, gradient, clip, box."""
    network.eval().requires_grad_(False)
    with parametrize.cached():
        for _ in range(num_steps):
            x = (x + NOISE * torch.randn_like(x)).requires_grad_(True)
            (gradient,) = torch.autograd.grad(network(x).sum(), x)
            x = (x.detach() - STEP * gradient.clamp(-CLIP, CLIP)).clamp(0, 1)
    return x


def tensor(images: np.ndarray) -> torch.Tensor:
    return torch.tensor(images.transpose(0, 3, 1, 2).copy(), device=DEVICE)


def langevin_chain(
    features: int, images: np.ndarray, start: np.ndarray, *, num_steps: int
) -> Callable[[], Any]:
    """A thunk of the chain's end."""
    del images
    network, first = make_network(features), tensor(start)
    return lambda: finished(run(network, first, num_steps))


def training_step(
    features: int, images: np.ndarray, start: np.ndarray, *, num_steps: int
) -> Callable[[], Any]:
    """A thunk of a step: chain, loss, gradient, clipped Adam without a first moment."""
    network, data, first = make_network(features), tensor(images), tensor(start)
    parameters = [*network.parameters()]
    optimizer = torch.optim.Adam(parameters, RATE, betas=(0.0, DECAY))

    def thunk() -> Any:
        samples = run(network, first, num_steps)
        network.train().requires_grad_(True)
        plus, minus = network(torch.cat([data, samples])).chunk(2)
        loss = plus.mean() - minus.mean() + L2 * (plus.square().mean() + minus.square().mean())
        optimizer.zero_grad()
        loss.backward()
        for parameter in parameters:
            moments = optimizer.state[parameter]
            square = moments.get("exp_avg_sq", torch.zeros((), device=DEVICE))
            correction = 1 - DECAY ** (float(moments.get("step", 0)) + 1)
            bound = 3 * (square / correction).sqrt() + 0.1
            parameter.grad.clamp_(-bound, bound)
        optimizer.step()
        return finished((loss.detach(), samples))

    return thunk
