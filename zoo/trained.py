"""Small models that are trained already, ready to use in one line.

    model, vocabulary, classes, card = zoo.load("on_lstm_plays")

``zoo/weights`` holds a file in safetensors format for each, and beside it a card that says what it
was trained on, by which command, what it reaches and what it is not good for.
``python -m experiments.release NAME`` makes the file again.

A file holds float16 arrays by their paths in the module and, in JSON, what makes the module again.
"""

import functools
import itertools
import json
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from zoo import _checks, extras
from zoo._files import replace_file
from zoo._paths import path_name
from zoo.conditional import ConditionalLayerNorm
from zoo.data import Vocabulary
from zoo.ordered import OnLstmLanguageModel
from zoo.transformer import Transformer, TransformerConfig

WEIGHTS = pathlib.Path(__file__).parent / "weights"


class Trained(NamedTuple):
    """The result of :func:`load`."""

    model: Any  # an nnx.Module with float32 parameters
    vocabulary: Vocabulary | None  # that of a model of text
    classes: dict[str, jax.Array]  # name -> condition [E], of a class-conditional model
    card: str  # Markdown: data, command, numbers, limits


def load(name: str) -> Trained:
    """A model by name; needs the extra ``data`` (safetensors).

    =====================  =========================================================================
    ``on_lstm_plays``      ``OnLstmLanguageModel`` of words: ``model(ids)``: logits, depths of trees
    ``bert_plays``         ``Transformer`` of characters: ``model(ids)``: logits of hidden ones
    ``conditional_plays``  causal ``Transformer``, norms see the play: ``model(ids, condition=…)``
    ``energy_digits``      energy of images: ``model(images)``, ``[B, 8, 8, 1]`` in 0..1 to ``[B]``
    =====================  =========================================================================

    Args:
        name: one of the above.

    Returns:
        The model, its vocabulary and classes, if it has them, and its card.

    Raises:
        ValueError: if there is no such model.
        ImportError: without the extra ``data``.

    >>> model, vocabulary, classes, card = load("on_lstm_plays")
    >>> ids = vocabulary.encode("the king is dead")[None]
    >>> model(ids).logits.shape == (1, 4, len(vocabulary))
    True
    """
    _checks.choice("name", name, tuple(sorted(path.stem for path in WEIGHTS.glob("*.safetensors"))))
    return Trained(*read(WEIGHTS / f"{name}.safetensors"), (WEIGHTS / f"{name}.md").read_text())


def read(path: pathlib.Path) -> tuple[Any, Vocabulary | None, dict[str, jax.Array]]:
    """Model, vocabulary and classes of what :func:`write` wrote."""
    with extras.require("safetensors", "data").safe_open(path, framework="numpy") as file:
        names = file.keys()
        arrays = {name: file.get_tensor(name).astype(np.float32) for name in names}
        texts = {name: json.loads(text) for name, text in file.metadata().items()}
    words = path.with_suffix(".vocabulary.json")
    vocabulary = Vocabulary.load(words) if words.exists() else None
    kind, options = texts["kind"], texts["options"]
    conditions = arrays.pop("conditions", np.zeros((0, 0)))
    classes = {n: jnp.asarray(c) for n, c in zip(texts["classes"], conditions, strict=True)}
    graph, state = nnx.split(nnx.eval_shape(lambda: MODULES[kind](options, nnx.Rngs(0))))
    state = jax.tree.map_with_path(lambda place, _: jnp.asarray(arrays[path_name(place)]), state)
    return nnx.merge(graph, state), vocabulary, classes


def write(
    path: pathlib.Path,
    kind: str,
    parameters: Any,
    *,
    options: Mapping[str, Any] | None = None,
    vocabulary: Vocabulary | None = None,
    classes: Mapping[str, Any] | None = None,
) -> None:
    """Writes parameters and what makes their module: ``kind`` is a key of ``MODULES``."""
    arrays = {path_name(place): leaf for place, leaf in jax.tree.leaves_with_path(parameters)}
    if classes:
        arrays["conditions"] = np.stack([*classes.values()])
    halves = {name: np.ascontiguousarray(leaf, np.float16) for name, leaf in arrays.items()}
    texts = {"kind": kind, "options": options or {}, "classes": [*(classes or {})]}
    metadata = {name: json.dumps(text) for name, text in texts.items()}
    replace_file(path, extras.require("safetensors.numpy", "data").save(halves, metadata=metadata))
    if vocabulary is not None:
        vocabulary.save(path.with_suffix(".vocabulary.json"))


def _on_lstm(options: dict[str, Any], rngs: nnx.Rngs) -> nnx.Module:
    return OnLstmLanguageModel(**options, rngs=rngs)


def _transformer(options: dict[str, Any], rngs: nnx.Rngs) -> nnx.Module:
    features = options.get("condition_features")
    config = TransformerConfig(**{k: v for k, v in options.items() if k != "condition_features"})
    if features is None:
        return Transformer(config, rngs=rngs)
    norm = functools.partial(ConditionalLayerNorm, condition_features=features)
    return Transformer(config, make_norm=norm, rngs=rngs)


def _dense_energy(options: dict[str, Any], rngs: nnx.Rngs) -> nnx.Module:
    """Layers of widths ``options["widths"]`` on all pixels at once, images to energies ``[B]``."""
    widths = options["widths"]
    layers: list[Callable[..., Any]] = [_flat]
    for before, after in itertools.pairwise(widths):
        layers += [nnx.Linear(before, after, rngs=rngs), jax.nn.silu]
    return nnx.Sequential(*layers, nnx.Linear(widths[-1], 1, rngs=rngs), _scalar)


def _flat(images: jax.Array) -> jax.Array:
    return images.reshape(len(images), math.prod(images.shape[1:]))


def _scalar(energies: jax.Array) -> jax.Array:
    return energies[:, 0]


MODULES: dict[str, Callable[[dict[str, Any], nnx.Rngs], nnx.Module]] = {
    "on_lstm": _on_lstm,
    "transformer": _transformer,
    "dense_energy": _dense_energy,
}
