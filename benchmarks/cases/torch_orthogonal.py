"""The rivals of `zoo.orthogonal` in PyTorch: the formulas as their authors' code writes them."""

import numpy as np
import torch

from benchmarks.cases.torch_on_lstm import backward, forward

__all__ = ["backward", "forward"]
START_SEED, ITERATIONS = 0, 10  # of the power iteration, as in `benchmarks.cases.orthogonal`


def distance(w: torch.Tensor) -> torch.Tensor:
    """WᵀW - I."""
    return w.T @ w - torch.eye(w.shape[1], device=w.device)


def soft(w: torch.Tensor) -> torch.Tensor:
    """‖WᵀW - I‖²."""
    return distance(w).square().sum()


def off_diagonal(w: torch.Tensor) -> torch.Tensor:
    """‖(WᵀW) ∘ (1 - I)‖²."""
    return ((w.T @ w) * (1 - torch.eye(w.shape[1], device=w.device))).square().sum()


def mutual_coherence(w: torch.Tensor) -> torch.Tensor:
    """The largest entry of |WᵀW - I|."""
    return distance(w).abs().max()


def spectral(w: torch.Tensor) -> torch.Tensor:
    """‖WᵀW - I‖ by power iteration on the matrix itself."""
    matrix = distance(w)
    vector = np.random.default_rng(START_SEED).normal(size=w.shape[1]).astype(np.float32)
    with torch.no_grad():
        vector = torch.tensor(vector, device=w.device)
        for _ in range(ITERATIONS):
            vector = torch.nn.functional.normalize(matrix @ vector, dim=0)
    return (matrix @ vector).norm()


def correlation(y: torch.Tensor) -> torch.Tensor:
    """V of soft signs of sharpness 10."""
    u = torch.nn.functional.normalize(torch.tanh(10 * y), dim=0)
    return u.T @ u


def self_orthogonality(y: torch.Tensor) -> torch.Tensor:
    """The literal sums with weights 100 and 1."""
    pairs = correlation(y) * (1 - torch.eye(y.shape[1], device=y.device))
    return 100 * pairs.sum() ** 2 + pairs.square().sum()


def angles(w: torch.Tensor) -> torch.Tensor:
    """Degrees of all pairs."""
    u = torch.nn.functional.normalize(w, dim=0)
    first, second = torch.triu_indices(w.shape[1], w.shape[1], 1, device=w.device)
    return torch.rad2deg(torch.arccos((u.T @ u)[first, second].clamp(-1, 1)))


def convolution(x: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    """3 × 3 positions, the sides padded; NHWC and HWIO in, NHWC out, as views."""
    y = torch.nn.functional.conv2d(x.permute(0, 3, 1, 2), kernel.permute(3, 2, 0, 1), padding=1)
    return y.permute(0, 2, 3, 1)
