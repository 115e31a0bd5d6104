"""What samples and energies are judged by: a small classifier, its features, ranks.

Nothing here is a published score: the classifier is trained in the same run, and its features make
distances that can be compared within one run only.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from experiments.command_line import local_path
from experiments.energy_model.config import EvaluationConfig
from experiments.image_captioning.data import make_encoder
from experiments.image_captioning.efficientnet import load_efficientnet
from zoo.extras import require

BATCH = 128
ENCODED_SIZE = 224  # pixels a side that EfficientNet-Lite0 was trained on


class Seen(NamedTuple):
    """What the classifier makes of N images."""

    probabilities: np.ndarray  # [N, K]
    features: np.ndarray  # [N, D]


class Classifier(nnx.Module):
    """One hidden layer."""

    def __init__(self, pixels: int, num_classes: int, features: int, *, rngs: nnx.Rngs):
        """Draws the parameters."""
        uniform = nnx.initializers.glorot_uniform()
        self.hidden = nnx.Linear(pixels, features, kernel_init=uniform, rngs=rngs)
        self.output = nnx.Linear(features, num_classes, kernel_init=uniform, rngs=rngs)

    def __call__(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Images to logits ``[B, K]`` and features ``[B, D]``."""
        features = jax.nn.relu(self.hidden(images.reshape(len(images), -1)))
        return self.output(features), features


class Judge:
    """A trained classifier and the training set as it sees it."""

    def __init__(self, network: Classifier, train: np.ndarray) -> None:
        @jax.jit
        def see(images: jax.Array) -> tuple[jax.Array, jax.Array]:
            logits, features = network(images)
            return jax.nn.softmax(logits), features

        self._see = see
        self.train = self(train)

    def __call__(self, images: np.ndarray) -> Seen:
        """Class probabilities and features."""
        return Seen(*map(np.asarray, self._see(images)))

    def scores(self, images: np.ndarray) -> dict[str, float]:
        """Diversity, certainty, and distances to the training set in features."""
        seen = self(images)
        histogram = np.bincount(
            seen.probabilities.argmax(1), minlength=seen.probabilities.shape[1]
        ) / len(images)
        used = histogram[histogram > 0]
        return {
            "class entropy": float(-(used * np.log(used)).sum()),
            "certainty": float(np.median(seen.probabilities.max(1))),
            "Fréchet distance": frechet_distance(seen.features, self.train.features),
            "nearest neighbour": float(np.median(nearest(seen.features, self.train.features))),
        }


def train_judge(
    images: np.ndarray, labels: np.ndarray, config: EvaluationConfig, *, noise: float
) -> Judge:
    """Trains the classifier on images with as much noise as the energy is trained on."""
    num_classes = int(labels.max()) + 1
    pixels = int(np.prod(images.shape[1:]))
    network = Classifier(pixels, num_classes, config.classifier_features, rngs=nnx.Rngs(0))
    graph, parameters = nnx.split(network)
    optimizer = optax.adam(1e-3)
    generator = np.random.default_rng(0)
    orders = [generator.permutation(len(labels)) for _ in range(config.classifier_epochs)]
    rows = np.concatenate(orders)
    rows = rows[: len(rows) // BATCH * BATCH].reshape(-1, BATCH)

    @jax.jit
    def train(parameters: Any, pictures: jax.Array, classes: jax.Array) -> Any:
        def loss(parameters: Any, rows: jax.Array, key: jax.Array) -> jax.Array:
            chosen = pictures[rows]
            chosen += noise * jax.random.normal(key, chosen.shape)
            logits, _ = nnx.merge(graph, parameters)(chosen)
            return optax.softmax_cross_entropy_with_integer_labels(logits, classes[rows]).mean()

        def step(carry: Any, rows: jax.Array) -> tuple[Any, None]:
            parameters, state, key = carry
            key, own = jax.random.split(key)
            updates, state = optimizer.update(jax.grad(loss)(parameters, rows, own), state)
            return (optax.apply_updates(parameters, updates), state, key), None

        start = (parameters, optimizer.init(parameters), jax.random.key(0))
        return jax.lax.scan(step, start, jnp.asarray(rows))[0][0]

    return Judge(nnx.merge(graph, train(parameters, images, labels)), images)


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Of the two normal laws with these means and covariances.

    |μ₁ - μ₂|² + tr C₁ + tr C₂ - 2·tr √(C₁C₂)

    Args:
        first: features ``[N, D]``.
        second: features ``[M, D]``.

    Returns:
        The squared distance.
    """
    means = [x.mean(axis=0, dtype=np.float64) for x in (first, second)]
    covariances = [np.cov(x.astype(np.float64), rowvar=False) for x in (first, second)]
    # C₁C₂ is similar to a positive matrix: its eigenvalues are real but for rounding.
    roots = np.sqrt(np.maximum(np.linalg.eigvals(covariances[0] @ covariances[1]).real, 0))
    traces = sum(np.trace(c) for c in covariances)
    return float(((means[0] - means[1]) ** 2).sum() + traces - 2 * roots.sum())


def encoded_distances(
    encoder: str, sets: dict[str, np.ndarray], train: np.ndarray
) -> dict[str, float]:
    """Fréchet distance of each set to the training set on the features of EfficientNet-Lite0.

    Not an FID: another network, enlarged another way. Nothing where there is no file of weights.

    Args:
        encoder: ``file:PATH`` of the weights, or empty.
        sets: name -> ``[N, height, width, 3]`` in 0..1.
        train: the same.
    """
    if not encoder:
        return {}
    path = local_path(encoder)
    if not path.exists():
        print(f"no file {path}: no Fréchet distance on EfficientNet-Lite0 features")
        return {}
    network, encode = load_efficientnet(path), make_encoder(ENCODED_SIZE)
    reference = encode(network, 255 * train)
    return {
        name: frechet_distance(encode(network, 255 * images), reference)
        for name, images in sets.items()
    }


def nearest(points: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Distance of every point to its nearest reference; both ``[·, D]``."""
    squares = (references**2).sum(axis=1)
    found = [
        (squares[None] - 2 * part @ references.T).min(axis=1)
        for part in np.array_split(points, -(-len(points) // 256))
    ]
    return np.sqrt(np.maximum((points**2).sum(axis=1) + np.concatenate(found), 0))


def auroc(inside: np.ndarray, outside: np.ndarray) -> float:
    """Probability that an image of the set has less energy than an outlier."""
    known = np.r_[np.ones(len(inside)), np.zeros(len(outside))]
    score = -np.r_[inside, outside]
    return float(require("sklearn.metrics", "data").roc_auc_score(known, score))
