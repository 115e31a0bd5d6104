"""Self-orthogonality and its rivals (https://kexue.fm/archives/7169, arXiv 2001.01275)."""

from zoo.orthogonal.angles import filter_angles
from zoo.orthogonal.penalties import KernelAxes, add_orthogonality_penalty, orthogonality_penalty
from zoo.orthogonal.responses import filter_responses, self_orthogonality, sign_correlation

__all__ = [
    "KernelAxes",
    "add_orthogonality_penalty",
    "filter_angles",
    "filter_responses",
    "orthogonality_penalty",
    "self_orthogonality",
    "sign_correlation",
]
