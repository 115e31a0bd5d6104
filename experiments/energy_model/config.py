"""Settings of the energy-model experiment.

Source: Du, Mordatch, "Implicit Generation and Modeling with Energy-Based Models", arXiv 1903.08689,
as read by https://kexue.fm/archives/6612.

    small            the default: the builtin digits, 8 × 8, minutes on two CPU cores
    smoke            a narrower and shorter one, seconds
    conditional      the digits with their labels: samples of a class, labels by energy, composed
                     energies, hidden halves filled in
    mnist            MNIST against Fashion-MNIST with a network that two CPU cores can sample, ten
                     minutes
    images           pictures of one's own, --data.uri 'file:FOLDER?size=28', with the numbers of
                     mnist
    paper            CIFAR-10 with the published network and numbers, on an accelerator

The published sampler (``paper``) is a noisy descent at the temperature 0.005²/(2·10) = 10⁻⁶. The
other presets sample exp(-E) of images with a little noise, in steps of the size of that noise.

``mnist`` has a Gaussian law as a reference measure of its energy (Xie, Lu, Zhu, Wu, "A Theory of
Generative ConvNet", 2016, arXiv 1602.03264), as wide as the noise, and lets the noise leave 0..1:
the network need not learn what the noise does to the density, |x|²/(2·noise²).
"""

import dataclasses
from typing import Any, Literal

from zoo.energy import langevin

from ..command_line import LoopConfig, RunConfig, at_least, in_unit_interval


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Labelled images, and others that the energy must tell from them."""

    uri: str = "builtin:digits"
    """builtin:digits (every fifth image is for the test), file:PATH.npz, file:FOLDER of idx files
    or of PNG and JPEG (?size=28 behind it scales them, ?channels=1 makes them grey), tfds:NAME or
    hf:NAME."""
    outliers: str = "builtin:photographs"
    """Images of another kind and the same size: builtin:photographs are patches of the two
    photographs that scikit-learn brings along; else as uri."""
    levels: int = 17
    """Distinct values of a pixel as stored; each is spread evenly over its share of 0..1."""
    noise: float = 0.05
    """Standard deviation of Gaussian noise added to the images, in 0..1."""

    def __post_init__(self) -> None:
        at_least(2, self, "levels")
        at_least(0, self, "noise")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The energy."""

    network: Literal["dense", "mnist", "resnet", "resnet_large", "multiscale"] = "dense"
    features: int = 192
    """Units of the narrowest layer."""
    conditional: bool = False
    """Whether the energy is one of image and label, E(x, y)."""
    reference: float | None = None
    """Standard deviation of a Gaussian law around the black image that the network of dense layers
    multiplies; None: the uniform law."""

    def __post_init__(self) -> None:
        at_least(1, self, "features")
        if self.reference is not None and not (self.reference > 0 and self.network == "dense"):
            got = f"{self.reference} and {self.network}"
            raise ValueError(f"model.reference must be > 0 and the network dense, got {got}")
        if self.conditional and self.network == "mnist":
            raise ValueError("model.conditional: the network mnist takes no labels; use another")


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
    """Langevin dynamics in a box, with replay."""

    num_steps: int = 20
    """Of every chain in a training step."""
    step_size: float = 1.25e-3
    noise_scale: float | None = None
    """None: the Langevin law at temperature 1."""
    noise_first: bool = False
    gradient_clip: float = 80.0
    """Bound of each component of the gradient."""
    bounds: tuple[float, float] = (0.0, 1.0)
    """The box, for chains and images with their noise; chains start in 0..1."""
    replay_capacity: int = 2048
    replay_bytes: bool = False
    """Keep the chains in a byte a pixel, as published; else as floats."""
    fresh_rate: float = 0.03
    """Share of the chains that start from noise; the others start from the replay buffer."""

    def __post_init__(self) -> None:
        at_least(1, self, "num_steps", "replay_capacity")
        in_unit_interval(self, "fresh_rate")
        langevin(lambda x: x, **self.langevin_options())  # checks its options
        if not self.bounds[0] <= 0 < 1 <= self.bounds[1]:
            raise ValueError(f"sampler.bounds must hold 0..1, got {self.bounds}")

    def langevin_options(self) -> dict[str, Any]:
        """The keyword arguments of ``zoo.energy.langevin``."""
        names = ("step_size", "noise_scale", "noise_first", "gradient_clip", "bounds")
        return {name: getattr(self, name) for name in names}


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """Contrastive divergence with the original's Adam."""

    steps: int = 9000
    batch_size: int = 64
    learning_rate: float = 1e-3
    """Cosine decay to 10 %."""
    l2: float = 1e-3
    """Strength of the squared energies in the loss."""
    evaluate_every: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        at_least(1, self, "steps", "batch_size", "evaluate_every")
        at_least(0, self, "learning_rate", "l2")


@dataclasses.dataclass(frozen=True)
class RollbackConfig:
    """What counts as diverging; the run then returns to its last good state, with a lower rate."""

    max_energy_gap: float = 200.0
    max_gradient_norm: float = 2000.0
    max_excess_saturation: float = 0.5
    factor: float = 0.5
    """Multiplies the learning rate at each return."""

    def __post_init__(self) -> None:
        at_least(0, self, "max_energy_gap", "max_gradient_norm", "max_excess_saturation")
        in_unit_interval(self, "factor")


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """Samples from noise, and the classifier that scores them."""

    num_samples: int = 400
    watched: int = 20
    """Chains from the same noise at every evaluation, for the picture of the training."""
    num_steps: int = 2000
    """Of the chains from noise to a sample; in the last tenth the temperature falls to 0."""
    test_images: int | None = None
    """Test images and outliers of each kind; all there are if None."""
    classifier_features: int = 128
    classifier_epochs: int = 30
    encoder: str = ""
    """Weights of EfficientNet-Lite0, file:PATH.npz, for one more Fréchet distance of images in
    colour; without the file it is left out."""

    def __post_init__(self) -> None:
        at_least(10, self, "num_samples", "test_images")
        if self.encoder and not self.encoder.startswith("file:"):
            raise ValueError(f"evaluation.encoder must be file:PATH or empty, got {self.encoder!r}")
        at_least(1, self, "num_steps", "watched", "classifier_features", "classifier_epochs")


@dataclasses.dataclass(frozen=True)
class Fields:
    """What comes out depends on these alone."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    sampler: SamplerConfig = SamplerConfig()
    training: TrainingConfig = TrainingConfig()
    rollback: RollbackConfig = RollbackConfig()
    evaluation: EvaluationConfig = EvaluationConfig()


@dataclasses.dataclass(frozen=True)
class Config(RunConfig, Fields):
    """An energy of images."""

    loop: LoopConfig = LoopConfig(log_every=100, checkpoint_every=1000)


_MNIST: dict[str, Any] = dict(
    model=ModelConfig(features=256, reference=0.2),
    # The curvature due to the noise is 1/0.2² = 25; a step of 0.016 contracts by two fifths.
    sampler=SamplerConfig(
        step_size=0.016,
        gradient_clip=1000.0,
        bounds=(-1.0, 2.0),
        replay_capacity=4096,
        fresh_rate=0.05,
    ),
    training=TrainingConfig(steps=6000, l2=1e-4),
    rollback=RollbackConfig(max_energy_gap=1000.0),
    evaluation=EvaluationConfig(num_steps=1000, test_images=2000, classifier_epochs=3),
)

PRESETS = {
    "small": Config(),
    "smoke": Config(
        model=ModelConfig(features=64),
        training=TrainingConfig(steps=200, learning_rate=2e-3, evaluate_every=100),
        # One number of images everywhere: every number compiles its own programs.
        evaluation=EvaluationConfig(
            num_samples=40,
            watched=40,
            num_steps=200,
            test_images=40,
            classifier_features=32,
            classifier_epochs=10,
        ),
        loop=LoopConfig(log_every=50, checkpoint_every=100),
    ),
    "conditional": Config(model=ModelConfig(conditional=True), training=TrainingConfig(steps=6000)),
    "mnist": Config(
        data=DataConfig(
            uri="file:$ZOO_DATA/mnist",
            outliers="file:$ZOO_DATA/fashion_mnist",
            levels=256,
            noise=0.2,
        ),
        **_MNIST,
    ),
    "images": Config(  # data.uri is the user's
        data=DataConfig(uri="", levels=256, noise=0.2), **_MNIST
    ),
    "paper": Config(
        data=DataConfig(uri="tfds:cifar10", outliers="tfds:svhn_cropped", levels=256, noise=0.0),
        model=ModelConfig(network="resnet_large", features=128),
        sampler=SamplerConfig(
            num_steps=60,
            step_size=10.0,
            noise_scale=0.005,
            noise_first=True,
            gradient_clip=0.01,
            replay_capacity=10_000,
            replay_bytes=True,
            fresh_rate=0.05,
        ),
        training=TrainingConfig(
            steps=120_000, batch_size=128, learning_rate=3e-4, l2=1.0, evaluate_every=2000
        ),
        rollback=RollbackConfig(max_energy_gap=2.0, max_gradient_norm=10.0),
        evaluation=EvaluationConfig(
            num_samples=1000,
            test_images=2000,
            classifier_epochs=10,
            encoder="file:$ZOO_DATA/efficientnet_lite0/efficientnet_lite0_fp16conv.npz",
        ),
        loop=LoopConfig(checkpoint_every=2000),
    ),
}
