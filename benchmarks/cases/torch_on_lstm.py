"""The rivals of `zoo.ordered` in PyTorch, written for it: a loop in Python over the steps.

The input product is hoisted out of the loop, the four gates share one product, master gates are
broadcast over their chunk instead of repeated. Columns of the parameters are those of
`zoo.ordered.OnLstmParams`. Every program runs on a GPU if PyTorch sees one, and waits for it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.measure import cores

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
torch.set_num_threads(cores())
torch.set_flush_denormal(True)  # as XLA does on a CPU


def tensors(arrays: Sequence[Any], *, gradients: bool) -> list[torch.Tensor]:
    """Copies of the arrays on the device."""
    return [torch.tensor(np.asarray(a), device=DEVICE, requires_grad=gradients) for a in arrays]


def finished(values: Any) -> Any:
    """Waits for the device."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return values


def forward(function: Callable[..., Any], arrays: Sequence[Any]) -> Callable[[], Any]:
    """A thunk of the function's value, without recording for gradients."""
    inputs = tensors(arrays, gradients=False)

    @torch.inference_mode()
    def thunk() -> Any:
        return finished(function(*inputs))

    return thunk


def backward(
    function: Callable[..., torch.Tensor],
    arrays: Sequence[Any],
    draw: Callable[..., np.ndarray] | None = None,
) -> Callable[[], Any]:
    """A thunk of a sum of the outputs and its gradients with respect to inputs and parameters.

    The weights of the sum are ``draw(*shape)``; without it the output is one number.
    """
    inputs = tensors(arrays, gradients=True)
    wanted = [*inputs, *getattr(function, "parameters", list)()]
    fixed = [] if draw is None else tensors([draw(*function(*inputs).shape)], gradients=False)

    def thunk() -> Any:
        value = function(*inputs)
        for weights in fixed:
            value = (value * weights).sum()
        return finished((value.detach(), torch.autograd.grad(value, wanted)))

    return thunk


def cumax(x: torch.Tensor) -> torch.Tensor:
    """Softmax, summed along the last axis."""
    return torch.softmax(x, dim=-1).cumsum(dim=-1)


def log_cumax(x: torch.Tensor) -> torch.Tensor:
    """Its logarithm."""
    sums = torch.logcumsumexp(x, dim=-1)
    return sums - sums[..., -1:]


def on_lstm(
    input_kernel: torch.Tensor,
    recurrent_kernel: torch.Tensor,
    bias: torch.Tensor,
    xs: torch.Tensor,
    *,
    chunk_size: int,
) -> torch.Tensor:
    """Hidden states ``[T, B, D]`` of an ON-LSTM from a state of zeros, paper's master gates."""
    time, batch, _ = xs.shape
    units = recurrent_kernel.shape[0]
    levels = units // chunk_size
    projected = torch.addmm(bias, xs.flatten(0, 1), input_kernel).view(time, batch, -1)
    hidden = xs.new_zeros(batch, units)
    cell = xs.new_zeros(batch, levels, chunk_size)
    states = []
    for row in projected:
        gates = torch.addmm(row, hidden, recurrent_kernel)
        master_input, master_forget, rest = gates.split((levels, levels, 4 * units), dim=1)
        output, candidate, inner, keep = rest.view(batch, 4, levels, chunk_size).unbind(1)
        master_forget = cumax(master_forget)[..., None]
        master_input = 1 - cumax(master_input)[..., None]
        overlap = master_forget * master_input
        kept = torch.sigmoid(keep) * overlap + (master_forget - overlap)
        written = torch.sigmoid(inner) * overlap + (master_input - overlap)
        cell = kept * cell + written * torch.tanh(candidate)
        hidden = (torch.sigmoid(output) * torch.tanh(cell)).flatten(1)
        states.append(hidden)
    return torch.stack(states)


class Lstm(torch.nn.LSTM):
    """PyTorch's own LSTM of one layer, time first: its hidden states."""

    def forward(self, xs: torch.Tensor) -> torch.Tensor:
        """Hidden states ``[T, B, D]``."""
        return super().forward(xs)[0]


def language_model_backward(
    params: Sequence[Any], ids: Any, targets: Any, *, chunk_size: int
) -> Callable[[], Any]:
    """A thunk of the mean cross-entropy of a stack with tied word vectors, and its gradients.

    Params: bias and table of the words, then bias, input and recurrent kernel of each layer.
    """
    indices = torch.tensor(np.asarray(ids), dtype=torch.int64, device=DEVICE)
    wanted = torch.tensor(np.asarray(targets), dtype=torch.int64, device=DEVICE).flatten()

    def loss(shift: torch.Tensor, table: torch.Tensor, *layers: torch.Tensor) -> torch.Tensor:
        xs = torch.nn.functional.embedding(indices.T, table)
        for bias, input_kernel, recurrent_kernel in zip(*[iter(layers)] * 3, strict=True):
            xs = on_lstm(input_kernel, recurrent_kernel, bias, xs, chunk_size=chunk_size)
        logits = torch.addmm(shift, xs.transpose(0, 1).flatten(0, 1), table.T)
        return torch.nn.functional.cross_entropy(logits, wanted)

    return backward(loss, params)
