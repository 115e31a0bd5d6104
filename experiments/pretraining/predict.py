"""Classifies lines of text with a classifier that was fine-tuned.

    python -m experiments.pretraining.predict runs/finetune/classifier "a line of text"
    python -m experiments.pretraining.predict runs/finetune/classifier < lines.txt

Prints a line per text: the label, its probability, the text.
"""

import argparse
import pathlib
import sys
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from zoo.training.records import read_json
from zoo.transformer import load_transformer

from ..command_line import local_path
from .corpus import load_vocabulary
from .finetune import Classifier, encode

ROWS = 32  # texts at once


def load_classifier(
    folder: pathlib.Path,
) -> tuple[list[str], Callable[[Sequence[str]], np.ndarray]]:
    """The K labels, and the function from N texts to their probabilities ``[N, K]``.

    Raises:
        ValueError: if the folder holds no classifier of ``finetune``.
        OSError: if a file is missing.
    """
    content = read_json(
        folder / "classifier.json", dict, advice="give the classifier/ of a run of finetune"
    )
    loaded = load_transformer(folder, architecture="bert")
    model = Classifier(loaded.config, len(content["labels"]), rngs=nnx.Rngs(0))
    model.encoder = loaded.model
    model.output_kernel[...] = jnp.asarray(loaded.head["classifier.weight"].T)
    model.output_bias[...] = jnp.asarray(loaded.head["classifier.bias"])
    vocabulary = load_vocabulary(folder)

    @nnx.jit
    def probabilities(model: Classifier, ids: jax.Array) -> jax.Array:
        return jax.nn.softmax(model(ids, ids != 0, key=None))

    def classify(texts: Sequence[str]) -> np.ndarray:
        rows = np.stack(encode(texts, vocabulary, content["length"]))
        pieces = [
            np.pad(rows[start : start + ROWS], ((0, max(0, start + ROWS - len(rows))), (0, 0)))
            for start in range(0, len(rows), ROWS)
        ]
        return np.concatenate([probabilities(model, piece) for piece in pieces])[: len(rows)]

    return content["labels"], classify


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {__spec__.name if __name__ == '__main__' else __name__}",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("classifier", help="folder classifier/ in the workdir of finetune")
    parser.add_argument("text", nargs="*", help="texts; none: the lines of the standard input")
    given = parser.parse_args(arguments)
    try:
        labels, classify = load_classifier(local_path(given.classifier))
        texts = given.text or [line for line in map(str.rstrip, sys.stdin) if line]
        found = classify(texts) if texts else []
    except (ValueError, OSError, ImportError) as error:
        parser.exit(2, f"{type(error).__name__}: {error}\n")
    for text, shares in zip(texts, found, strict=True):
        print(f"{labels[int(np.argmax(shares))]}\t{np.max(shares):.3f}\t{text}")


if __name__ == "__main__":
    main()
