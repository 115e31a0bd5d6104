"""The training step of every experiment, ready to be compiled for a mesh from shapes alone.

Each comes from ``build(config, mesh, data)`` of its experiment, with the largest preset whose step
compiles in minutes and made-up data: the vocabulary has the size of the published one, rounded up
to what the mesh divides, and a batch is the published one for pretraining, ``ROWS`` rows per device
for the others.
"""

import dataclasses
import functools
import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from zoo.data import Vocabulary
from zoo.spherical import riemannian_sgd
from zoo.spherical.options import JoseOptions
from zoo.spherical.trainer import RULES, compile_step
from zoo.training.mesh import batch_sharding
from zoo.training.state import abstract_state
from zoo.transformer import TransformerConfig

from .jose_scale import chunks_and_tables


def _experiment(name: str) -> Any:
    """A module of the experiments; in an installed package they are ``zoo.experiments``."""
    return importlib.import_module(f"{__package__.removesuffix('benchmarks')}experiments.{name}")


change, Experiment = _experiment("command_line").change, _experiment("running").Experiment
averaging = _experiment("weight_averaging.train")
averaging_config = _experiment("weight_averaging.config")
caption = _experiment("image_captioning.train")
caption_config = _experiment("image_captioning.config")
caption_data = _experiment("image_captioning.data")
finetune = _experiment("pretraining.finetune")
energy, energy_config = _experiment("energy_model.train"), _experiment("energy_model.config")
formulas, formula_batches = _experiment("on_lstm_logic.logic"), _experiment("on_lstm_logic.batches")
logic, logic_config = _experiment("on_lstm_logic.train"), _experiment("on_lstm_logic.config")
on_lstm = _experiment("on_lstm_language_model.train")
on_lstm_config = _experiment("on_lstm_language_model.config")
orthogonality = _experiment("self_orthogonality.train")
orthogonality_config = _experiment("self_orthogonality.config")
pretraining_train = _experiment("pretraining.train")
pretraining_config = _experiment("pretraining.config")
text, text_config = _experiment("conditional_text.train"), _experiment("conditional_text.config")
texts = _experiment("conditional_text.texts")

ROWS = 24  # per device; on no slice their number is that of the units of a layer


class Step(NamedTuple):
    """What is compiled, and what its shapes mean."""

    function: Callable[..., Any]
    arguments: tuple
    batch: int  # rows of a batch; an array of that many rows is an activation of all devices
    shared: bool  # whether the devices share out the parameters
    gathered: tuple[tuple[int, ...], ...] = ()  # shapes of such arrays that every device needs


def step_of(experiment: Experiment, mesh: Mesh) -> Step:
    """The step of an experiment, its state and its first batch as shapes."""
    state = experiment.abstract_state(mesh)
    batch = shapes_of(next(experiment.batches), mesh)
    rows = jax.tree.leaves(batch)[0].shape[0] // experiment.accumulation_steps
    step = experiment.train_step(state.shardings)
    return Step(step, (state, batch), rows, bool(experiment.rules))


def shapes_of(batch: Any, mesh: Mesh) -> Any:
    place = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), batch)


def words(size: int) -> Vocabulary:
    return Vocabulary(("<unk>", "<eos>", *map(str, range(size - 2))), "whitespace")


def pretraining(config: Any, vocab_size: int, mesh: Mesh) -> Step:
    """Of `experiments.pretraining`."""
    length, rows = config.data.length, config.training.batch_size
    row = {
        "ids": np.zeros(length, np.int32),
        "word_starts": np.zeros(length, bool),
        "document_ids": np.zeros(length, np.int32),
        "row": np.int32(0),
    }
    data = pretraining_train.Data({"train": [row] * rows, "valid": [row]}, vocab_size)
    config = change(config, training={"bfloat16": True})
    return step_of(pretraining_train.build(config, mesh, data), mesh)


def fine_tuning(mesh: Mesh) -> Step:
    """Of `experiments.pretraining.finetune`, on a BERT of the base size."""
    rows = ROWS * mesh.size
    config = finetune.Config(pretrained="bert", batch_size=rows)
    encoder = TransformerConfig(vocab_size=30592, head="none", attention_dropout=0.0)
    row = {"ids": np.zeros(config.length, np.int32), "label": np.int32(0)}
    data = finetune.Data(encoder, train=[row] * rows, test=[row], labels=["negative", "positive"])
    return step_of(finetune.build(config, mesh, data), mesh)


def ordered_language_model(mesh: Mesh) -> Step:
    """Of `experiments.on_lstm_language_model`, on the vocabulary of the Penn Treebank."""
    rows = ROWS * mesh.size
    config = on_lstm_config.PRESETS["penn_treebank"]
    config = change(config, training={"batch_size": rows, "bfloat16": True})
    ids = np.zeros(rows * 100, np.int32)
    splits = dict.fromkeys(("train", "valid", "test"), ids)
    data = on_lstm.Data({}, words(10_000), splits, [])
    return step_of(on_lstm.build(config, mesh, data), mesh)


def logic_classifier(mesh: Mesh) -> Step:
    """Of `experiments.on_lstm_logic`, on its longest formulas in training."""
    rows = ROWS * mesh.size
    config = change(logic_config.PRESETS["paper"], training={"batch_size": rows})
    formula = " ".join(["a"] * formula_batches.LONG)
    pairs = [formulas.Pair("#", formula, formula)] * rows
    experiment = logic.build(config, mesh, corpus=formulas.Corpus(pairs, pairs[:1], {}))
    return step_of(experiment, mesh)


def conditional_text(mesh: Mesh) -> Step:
    """Of `experiments.conditional_text`, with two classes that every norm sees.

    Two of twelve equal layers that are not scanned: all of them compile for ten minutes.
    """
    rows = ROWS * mesh.size
    training = {"batch_size": rows, "bfloat16": True}
    config = change(text_config.PRESETS["paper"], model={"num_layers": 2}, training=training)
    size = config.data.max_vocabulary + 64 - config.data.max_vocabulary % 64
    ids = [np.zeros(config.training.length - 1, np.int32)] * rows
    pieces = texts.Pieces(ids, np.zeros(rows, np.int32))
    data = text.Data(["negative", "positive"], words(size), pieces, pieces)
    return step_of(text.build(config, mesh, data, "norm"), mesh)


def image_captions(mesh: Mesh) -> Step:
    """Of `experiments.image_captioning`, two layers from the vectors of a frozen encoder."""
    rows = ROWS * mesh.size
    config = change(
        caption_config.PRESETS["paper"],
        data={"train_encoder": False},
        model={"num_layers": 2},
        training={"batch_size": rows, "bfloat16": True},
    )
    vectors = {"train": np.zeros((rows, 1280), np.float32), "valid": np.zeros((1, 1280))}
    sets = {name: caption_data.Captioned(x, [[["0"]]] * len(x)) for name, x in vectors.items()}
    scale = np.zeros(1280, np.float32), np.ones(1280, np.float32)
    size = 3008  # words that occur five times in Flickr8k
    data = caption.Data(sets, words(size), caption_data.Vectors(vectors, *scale))
    return step_of(caption.build(config, mesh, data), mesh)


def images(rows: int, dtype: Any) -> tuple[np.ndarray, np.ndarray]:
    """As many images of the size of CIFAR-10, and labels of ten classes."""
    return np.zeros((rows, 32, 32, 3), dtype), np.arange(rows, dtype=np.int32) % 10


def examples(pictures: np.ndarray, labels: np.ndarray) -> list[dict[str, Any]]:
    return [{"image": x, "label": y} for x, y in zip(pictures, labels, strict=True)]


def averaged_resnet(mesh: Mesh) -> Step:
    """Of `experiments.weight_averaging`."""
    pictures = images(ROWS * mesh.size, np.uint8)
    config = change(averaging_config.PRESETS["paper"], training={"batch_size": len(pictures[0])})
    data = averaging.Data(examples(*pictures), pictures, pictures)
    return step_of(averaging.build(config, mesh, data), mesh)


def self_orthogonal_classifier(mesh: Mesh) -> Step:
    """Of `experiments.self_orthogonality`."""
    pictures = images(ROWS * mesh.size, np.float32)
    config = orthogonality_config.PRESETS["paper"]
    config = change(config, training={"batch_size": len(pictures[0])})
    data = orthogonality.Images(pictures, pictures)
    networks = orthogonality.all_networks(config)
    chosen = next(n for n in networks if n.method == "self_orthogonality" and n.batch_norm)
    return step_of(orthogonality.build(config, mesh, data, chosen), mesh)


def energy_model(mesh: Mesh) -> Step:
    """Of `experiments.energy_model`: chains of 60 steps within the step.

    On the smaller of the published networks, which compiles for ten minutes as it is.
    """
    pictures = images(ROWS * mesh.size, np.uint8)
    config = change(
        energy_config.PRESETS["paper"],
        model={"network": "resnet"},
        training={"batch_size": len(pictures[0])},
    )
    data = energy.Data(examples(*pictures), pictures, pictures, {})
    return step_of(energy.build(config, mesh, data), mesh)


def spherical_embeddings(mesh: Mesh) -> Step:
    """Of `experiments.jose`, with the words of Wikipedia and 60 million documents."""
    words, documents = 239_672, 60_000_000
    options = JoseOptions(window=10, chunk_size=1024 * mesh.size)
    text = 4 * options.chunk_size
    chunks, tables = chunks_and_tables(options, words, documents, text, text, mesh.size)
    chunk = next(chunks)
    chunks.close()
    optimizer = riemannian_sgd(options.learning_rate)
    state = abstract_state(tables, optimizer, mesh=mesh, rules=RULES)
    step = compile_step(options, chunks.text_rows, state.shardings)
    # Any device may hold the row that a word moves. To gather what moves it is less than a sum over
    # devices of all rows of the chunk would be: 94 rows per block, once, against 74 twice.
    rows = chunk.centers.shape[1] + chunk.negatives.shape[1]
    moves = ((len(chunk.centers), rows, options.dimension),)
    arguments = state, shapes_of(chunk, mesh)
    return Step(step, arguments, len(chunk.centers), True, gathered=moves)


BASE = pretraining_config.PRESETS["base"]
GPT = dataclasses.replace(
    change(BASE, data={"length": 1024}, training={"batch_size": 128}),
    model=pretraining_config.ModelConfig(  # 1.3 billion parameters
        features=2048,
        num_layers=24,
        num_heads=16,
        feedforward_features=8192,
        norm_position="pre",
        activation="gelu_tanh",
        initial_scale=0.02,
        remat="full",
    ),
    objective=pretraining_config.ObjectiveConfig(kind="causal"),
)
STEPS: dict[str, Callable[[Mesh], Step]] = {
    "base": functools.partial(pretraining, BASE, 30592),
    "gpt-1.3b": functools.partial(pretraining, GPT, 50304),
    "fine-tuning": fine_tuning,
    "on-lstm": ordered_language_model,
    "on-lstm-logic": logic_classifier,
    "conditional-text": conditional_text,
    "image-captioning": image_captions,
    "weight-averaging": averaged_resnet,
    "self-orthogonality": self_orthogonal_classifier,
    "energy": energy_model,
    "jose": spherical_embeddings,
}
