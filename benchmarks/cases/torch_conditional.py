"""The rivals of `zoo.conditional` in PyTorch: its own LayerNorm, with and without a condition."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks.cases.torch_on_lstm import finished, forward, tensors

__all__ = ["conditional_layer_norm", "forward", "gradient", "layer_norm"]


def conditional_layer_norm(
    x: torch.Tensor, condition: torch.Tensor, scale: Any, bias: Any, *kernels: torch.Tensor
) -> torch.Tensor:
    """PyTorch's fused normalisation, then gain and shift of each sample."""
    normal = torch.nn.functional.layer_norm(x, x.shape[-1:], eps=1e-12)
    gain = torch.addmm(scale, condition, kernels[0])
    shift = torch.addmm(bias, condition, kernels[1])
    return torch.addcmul(shift[:, None], normal, gain[:, None])


def layer_norm(
    x: torch.Tensor, _: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor, *__: torch.Tensor
) -> torch.Tensor:
    """PyTorch's LayerNorm, which takes no condition."""
    return torch.nn.functional.layer_norm(x, x.shape[-1:], scale, bias, 1e-12)


def gradient(
    function: Callable[..., torch.Tensor], dy: Any, arrays: Sequence[Any]
) -> Callable[[], Any]:
    """A thunk of the output and the gradients of the inputs that the function uses."""
    (cotangent,) = tensors([dy], gradients=False)
    inputs = tensors(arrays, gradients=True)

    def thunk() -> Any:
        y = function(*inputs)
        gradients = torch.autograd.grad(y, inputs, cotangent, allow_unused=True)
        return finished((y.detach(), gradients))

    return thunk
