"""What samples and energies are scored by: a small classifier, its features, ranks.

Nothing here is a published score: the classifier is trained in the same run, and its features give
distances that can be compared within one run only.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from zoo.extras import require

from ..command_line import local_path
from ..efficientnet import load_efficientnet, make_encoder
from .config import EvaluationConfig

BATCH = 128
ENCODED_SIZE = 224  # pixels a side that EfficientNet-Lite0 was trained on


class Classifier(nnx.Module):
    """One hidden layer."""

    def __init__(self, pixels: int, num_classes: int, features: int, *, rngs: nnx.Rngs):
        uniform = nnx.initializers.glorot_uniform()
        self.hidden = nnx.Linear(pixels, features, kernel_init=uniform, rngs=rngs)
        self.output = nnx.Linear(features, num_classes, kernel_init=uniform, rngs=rngs)

    def __call__(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Images to logits ``[B, K]`` and features ``[B, D]``."""
        features = jax.nn.relu(self.hidden(images.reshape(len(images), -1)))
        return self.output(features), features


def train_classifier(
    images: np.ndarray, labels: np.ndarray, config: EvaluationConfig, *, noise: float
) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Trains on images with as much noise as the energy is trained on.

    Returns:
        Images -> class probabilities ``[N, K]`` and features ``[N, D]``.
    """
    num_classes, pixels = int(labels.max()) + 1, int(np.prod(images.shape[1:]))
    network = Classifier(pixels, num_classes, config.classifier_features, rngs=nnx.Rngs(0))
    graph, parameters = nnx.split(network)
    optimizer = optax.adam(1e-3)
    generator, epochs = np.random.default_rng(0), range(config.classifier_epochs)
    rows = np.concatenate([generator.permutation(len(labels)) for _ in epochs])
    rows = rows[: len(rows) // BATCH * BATCH].reshape(-1, BATCH)

    @jax.jit
    def train(parameters: Any, images: jax.Array, labels: jax.Array) -> Any:
        def loss(parameters: Any, rows: jax.Array, key: jax.Array) -> jax.Array:
            noisy = images[rows] + noise * jax.random.normal(key, (BATCH, *images.shape[1:]))
            logits, _ = nnx.merge(graph, parameters)(noisy)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels[rows]).mean()

        def step(carry: Any, rows: jax.Array) -> tuple[Any, None]:
            parameters, state, key = carry
            key, own = jax.random.split(key)
            updates, state = optimizer.update(jax.grad(loss)(parameters, rows, own), state)
            return (optax.apply_updates(parameters, updates), state, key), None

        start = (parameters, optimizer.init(parameters), jax.random.key(0))
        return jax.lax.scan(step, start, jnp.asarray(rows))[0][0]

    trained = nnx.merge(graph, train(parameters, images, labels))

    @jax.jit
    def classify(images: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits, features = trained(images)
        return jax.nn.softmax(logits), features

    return lambda images: jax.device_get(classify(images))


def score(
    probabilities: np.ndarray, features: np.ndarray, references: np.ndarray
) -> dict[str, float]:
    """Diversity and certainty of N images, and distances to the features of the training set."""
    counts = np.bincount(probabilities.argmax(axis=1))
    used = counts[counts > 0] / len(probabilities)
    nearest = require("sklearn.metrics", "data").pairwise_distances_argmin_min(features, references)
    return {
        "class entropy": float(-(used * np.log(used)).sum()),
        "certainty": float(np.median(probabilities.max(axis=1))),
        "Fréchet distance": frechet_distance(features, references),
        "nearest neighbour": float(np.median(nearest[1])),
    }


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Squared Fréchet distance of the normal laws fitted to features ``[N, D]`` and ``[M, D]``.

    |μ₁ - μ₂|² + tr C₁ + tr C₂ - 2·tr √(C₁C₂)
    """
    means = [x.mean(axis=0, dtype=np.float64) for x in (first, second)]
    covariances = [np.atleast_2d(np.cov(x.T, dtype=np.float64)) for x in (first, second)]
    # C₁C₂ is similar to a positive matrix: its eigenvalues are real but for rounding.
    roots = np.sqrt(np.maximum(np.linalg.eigvals(covariances[0] @ covariances[1]).real, 0))
    traces = sum(np.trace(c) for c in covariances)
    return float(((means[0] - means[1]) ** 2).sum() + traces - 2 * roots.sum())


def encoded_distances(
    encoder: str, sets: dict[str, np.ndarray], train: np.ndarray
) -> dict[str, float]:
    """Fréchet distances of ``sets`` to ``train`` on the features of EfficientNet-Lite0.

    Not an FID: another network, enlarged another way. None without a file ``encoder`` of weights.
    """
    path = local_path(encoder)
    if not encoder or not path.exists():
        if encoder:
            print(f"no file {path}: no Fréchet distance on EfficientNet-Lite0 features")
        return {}
    network, encode = load_efficientnet(path), make_encoder(ENCODED_SIZE)
    reference = encode(network, 255 * train)
    return {
        name: frechet_distance(encode(network, 255 * images), reference)
        for name, images in sets.items()
    }


def auroc(inside: np.ndarray, outside: np.ndarray) -> float:
    """Probability that an image of the set has less energy than an outlier."""
    known = np.r_[np.ones(len(inside)), np.zeros(len(outside))]
    score = -np.r_[inside, outside]
    return float(require("sklearn.metrics", "data").roc_auc_score(known, score))
