"""Self-orthogonality and its rivals (https://kexue.fm/archives/7169, arXiv 2001.01275)."""

from zoo.orthogonal.angles import filter_angles, random_angle_density, random_angle_std
from zoo.orthogonal.axes import KernelAxes
from zoo.orthogonal.penalties import orthogonality_penalty
from zoo.orthogonal.responses import filter_responses, self_orthogonality, sign_correlation
from zoo.orthogonal.transformation import add_orthogonality_penalty

__all__ = [
    "KernelAxes",
    "add_orthogonality_penalty",
    "filter_angles",
    "filter_responses",
    "orthogonality_penalty",
    "random_angle_density",
    "random_angle_std",
    "self_orthogonality",
    "sign_correlation",
]
