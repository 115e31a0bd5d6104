"""The sheet of pictures with their captions."""

import pathlib
import textwrap
from collections.abc import Sequence

import numpy as np

from ..pictures import new_figure, save_figure

COLUMNS = 6


def save(
    workdir: pathlib.Path,
    images: np.ndarray,
    captions: Sequence[Sequence[str]],
    references: Sequence[Sequence[Sequence[str]]],
    scores: np.ndarray,
) -> pathlib.Path:
    """Writes ``captions.png``: the best and the worst captions, with a reference below each."""
    order = np.argsort(-scores, kind="stable")
    rows = (("best", order[:COLUMNS]), ("worst", order[-COLUMNS:]))
    figure = new_figure(2.1 * COLUMNS, 6.6)
    parts = figure.subfigures(len(rows), 1)
    for part, (name, chosen) in zip(parts, rows, strict=True):
        part.suptitle(f"The {name} {len(chosen)} of {len(captions)} captions", fontsize=11)
        for axes, index in zip(part.subplots(1, COLUMNS), chosen, strict=False):
            image = images[index]
            axes.imshow(image.squeeze(), cmap="gray", interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
            axes.set_title(_wrapped(captions[index]), fontsize=8.5, fontweight="bold")
            axes.set_xlabel(_wrapped(references[index][0]), fontsize=7.5, color="0.35")
    return save_figure(workdir / "captions.png", figure, dpi=80)


def _wrapped(words: Sequence[str]) -> str:
    return "\n".join(textwrap.wrap(" ".join(words) or "(nothing)", 27)[:4])
