"""The training step of every experiment from shapes alone, for :mod:`benchmarks.tpu_compile`.

Each function takes a mesh, whose devices need not exist, and gives the step that the experiment
runs on it, with the shapes of what it is called with. Models are those of the largest presets; a
batch is the published one for pretraining, ``ROWS`` rows a device for the others.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from benchmarks.cases.jose_programs import chunk_sampler
from experiments.conditional_text import config as text_config
from experiments.conditional_text import train as text
from experiments.conditional_text.model import Generator
from experiments.conditional_text.texts import Tokens
from experiments.energy_model import config as energy_config
from experiments.energy_model import train as energy
from experiments.energy_model.model import make_network
from experiments.image_captioning import config as caption_config
from experiments.image_captioning import train as caption
from experiments.image_captioning.data import Vectors
from experiments.image_captioning.model import make_captioner
from experiments.image_captioning.model import transformer_config as caption_transformer
from experiments.on_lstm_language_model import config as on_lstm_config
from experiments.on_lstm_language_model import train as on_lstm
from experiments.on_lstm_logic import config as logic_config
from experiments.on_lstm_logic import train as logic
from experiments.on_lstm_logic.batches import LONG
from experiments.on_lstm_logic.model import PairClassifier
from experiments.pretraining.config import PRESETS, Config, ModelConfig, ObjectiveConfig
from experiments.pretraining.train import make_loss, make_optimizer, transformer_config
from experiments.running import decaying_adamw
from experiments.self_orthogonality import config as orthogonality_config
from experiments.self_orthogonality import train as orthogonality
from experiments.weight_averaging import config as averaging_config
from experiments.weight_averaging import train as averaging
from experiments.weight_averaging.resnet import ResNet
from zoo.energy import replay_init
from zoo.ordered import OnLstmLanguageModel
from zoo.spherical import trainer as jose_trainer
from zoo.spherical.corpus import EncodedCorpus
from zoo.training import (
    Rules,
    abstract_state,
    batch_sharding,
    functional,
    functional_with_state,
    make_train_step,
)
from zoo.transformer import Transformer, placement_rules

ROWS = 24  # a device; on no slice their number is that of the units of a layer
Shapes = Mapping[str, tuple[tuple[int, ...], Any]]  # name -> shape and dtype


class Step(NamedTuple):
    """What is compiled, and what its shapes mean."""

    function: Callable[..., Any]
    arguments: tuple
    batch: int  # rows of a batch; an array of that many rows is an activation of all devices
    shared: bool  # whether the devices share out the parameters
    gathered: tuple[tuple[int, ...], ...] = ()  # shapes of such arrays that every device needs


def training_step(
    mesh: Mesh,
    init_parameters: Callable,
    loss_fn: Callable,
    optimizer: optax.GradientTransformation,
    batch: Shapes,
    *,
    rules: Rules = (),
    carry: Any = (),
    init_model_state: Callable | None = None,
    **options: Any,
) -> Step:
    """The step of an experiment from shapes alone."""
    state = abstract_state(
        init_parameters,
        optimizer,
        mesh=mesh,
        rules=rules,
        carry=carry,
        init_model_state=init_model_state,
    )
    step = make_train_step(loss_fn, optimizer, shardings=state.shardings, **options)
    place = batch_sharding(mesh)
    arrays = {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=place)
        for name, (shape, dtype) in batch.items()
    }
    rows = next(iter(arrays.values())).shape[0] // options.get("accumulation_steps", 1)
    return Step(step, (state, arrays), rows, bool(rules))


def pretraining(config: Config, vocab_size: int, mesh: Mesh) -> Step:
    """Of `experiments.pretraining`."""
    length, rows = config.data.length, config.training.batch_size
    model_config = transformer_config(
        config.model, config.objective, vocab_size=vocab_size, length=length
    )
    init, rebuild = functional(lambda rngs: Transformer(model_config, rngs=rngs))
    return training_step(
        mesh,
        init,
        make_loss(rebuild, config, vocab_size=vocab_size),
        make_optimizer(config.training),
        {
            "ids": ((rows, length), jnp.int32),
            "word_starts": ((rows, length), bool),
            "document_ids": ((rows, length), jnp.int32),
            "row": ((rows,), jnp.int32),
        },
        rules=placement_rules(model_config),
        accumulation_steps=config.training.accumulation_steps,
        compute_dtype=jnp.bfloat16,
    )


def ordered_language_model(mesh: Mesh) -> Step:
    """Of `experiments.on_lstm_language_model`, on the vocabulary of the Penn Treebank."""
    config = on_lstm_config.PRESETS["penn_treebank"]
    rows, length, vocab_size = ROWS * mesh.size, config.training.num_steps, 10_000
    init, rebuild = functional(
        lambda rngs: OnLstmLanguageModel(vocab_size, **dataclasses.asdict(config.model), rngs=rngs)
    )
    return training_step(
        mesh,
        init,
        on_lstm.make_loss(rebuild, config.training),
        on_lstm.make_optimizer(config.training, 1000, None),
        {
            "inputs": ((rows, length), jnp.int32),
            "targets": ((rows, length), jnp.int32),
            "valid": ((rows, length), bool),
            "start": ((rows,), bool),
        },
        rules=on_lstm.RULES,
        carry=on_lstm.local_carries(rebuild, init, rows),
        compute_dtype=jnp.bfloat16,
    )


def fewer_layers(config: Any) -> Any:
    """Two of twelve equal layers that are not scanned: all of them compile for ten minutes."""
    return dataclasses.replace(config, model=dataclasses.replace(config.model, num_layers=2))


def logic_classifier(mesh: Mesh) -> Step:
    """Of `experiments.on_lstm_logic`, on its longest formulas."""
    config = logic_config.PRESETS["paper"]
    rows = ROWS * mesh.size
    init, rebuild = functional(
        lambda rngs: PairClassifier("on_lstm", **dataclasses.asdict(config.model), rngs=rngs)
    )
    formulas: Shapes = {name: ((rows, LONG), jnp.int32) for name in ("longer", "shorter")} | {
        name: ((rows,), jnp.int32) for name in ("longer_length", "shorter_length")
    }
    return training_step(
        mesh,
        init,
        logic.make_loss(rebuild),
        logic.make_optimizer(config.training, 1000),
        {
            **formulas,
            "swapped": ((rows,), bool),
            "relation": ((rows,), jnp.int32),
            "valid": ((rows,), bool),
        },
        rules=logic.RULES,
    )


def conditional_text(mesh: Mesh) -> Step:
    """Of `experiments.conditional_text`, with two classes told through every norm."""
    config = fewer_layers(text_config.PRESETS["paper"])
    size = config.data.max_vocabulary + 64 - config.data.max_vocabulary % 64
    tokens = Tokens(size, 0, 1, (), (), encode=np.asarray, decode=str)
    rows, length = ROWS * mesh.size, config.training.length
    init, rebuild = functional(lambda rngs: Generator(config, "norm", 2, tokens, rngs=rngs))
    ids = (rows, length), jnp.int32
    return training_step(
        mesh,
        init,
        text.make_loss(rebuild, config.training.drop_label, untold=2),
        decaying_adamw(config.training, 1000),
        {
            "inputs": ids,
            "targets": ids,
            "pieces": ids,
            "labels": ((rows,), jnp.int32),
            "valid": ((rows,), bool),
        },
        rules=text.RULES,
        compute_dtype=jnp.bfloat16,
    )


def image_captions(mesh: Mesh) -> Step:
    """Of `experiments.image_captioning`, from the vectors of a frozen encoder."""
    config = fewer_layers(caption_config.PRESETS["paper"])
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, train_encoder=False))
    transformer = caption_transformer(config, 3008)  # words that occur five times in Flickr8k
    vectors = Vectors({}, np.zeros(1280, np.float32), np.ones(1280, np.float32))
    rows, length = ROWS * mesh.size, config.data.max_words + 1
    init, rebuild = functional(lambda rngs: make_captioner(config, transformer, vectors, rngs=rngs))
    return training_step(
        mesh,
        init,
        caption.make_loss(rebuild, config),
        decaying_adamw(config.training, 1000),
        {
            "image": ((rows, 1280), jnp.float32),
            "inputs": ((rows, length), jnp.int32),
            "targets": ((rows, length), jnp.int32),
            "length": ((rows,), jnp.int32),
            "valid": ((rows,), bool),
        },
        rules=(*placement_rules(transformer), *caption.NORM_RULES),
        compute_dtype=jnp.bfloat16,
    )


def images(rows: int, dtype: Any) -> Shapes:
    """A batch of CIFAR-10."""
    return {
        "image": ((rows, 32, 32, 3), dtype),
        "label": ((rows,), jnp.int32),
        "valid": ((rows,), bool),
    }


def averaged_resnet(mesh: Mesh) -> Step:
    """Of `experiments.weight_averaging`."""
    config = averaging_config.PRESETS["paper"]
    parts = functional_with_state(
        lambda rngs: ResNet(3, 10, **dataclasses.asdict(config.model), rngs=rngs)
    )
    return training_step(
        mesh,
        parts.init_parameters,
        averaging.make_loss(parts, config.data),
        averaging.make_optimizer(config.averaging, config.training.learning_rate),
        images(ROWS * mesh.size, jnp.uint8),
        init_model_state=parts.init_model_state,
    )


def self_orthogonal_classifier(mesh: Mesh) -> Step:
    """Of `experiments.self_orthogonality`."""
    config = orthogonality_config.PRESETS["paper"]
    pictures = np.zeros((10, 32, 32, 3), np.float32), np.arange(10)
    parts = functional_with_state(
        functools.partial(
            orthogonality.make_network, config, orthogonality.Images(pictures, pictures), True
        )
    )
    return training_step(
        mesh,
        parts.init_parameters,
        orthogonality.make_loss(config, "self_orthogonality", parts),
        orthogonality.make_optimizer(config, "self_orthogonality", 1000),
        images(ROWS * mesh.size, jnp.float32),
        init_model_state=parts.init_model_state,
    )


def energy_model(mesh: Mesh) -> Step:
    """Of `experiments.energy_model`: chains of 60 steps within the step.

    On the smaller of the published networks, which compiles for ten minutes as it is.
    """
    config = energy_config.PRESETS["paper"]
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, network="resnet"))
    shape = (32, 32, 3)
    parts = functional_with_state(make_network(config.model, shape))
    return training_step(
        mesh,
        parts.init_parameters,
        energy.make_loss(parts, config),
        energy.make_optimizer(config.training),
        images(ROWS * mesh.size, jnp.uint8),
        init_model_state=lambda key: {
            "network": parts.init_model_state(key),
            "replay": replay_init(
                jnp.zeros(shape),
                capacity=config.sampler.replay_capacity,
                storage_dtype=jnp.uint8,
            ),
        },
    )


def spherical_embeddings(mesh: Mesh) -> Step:
    """Of `experiments.jose`, with the words of Wikipedia and 60 million documents."""
    words, documents, dimension, chunk_size = 239_672, 60_000_000, 100, 1024 * mesh.size
    counts = np.maximum(2.4e9 / 12 / np.arange(1, words + 1), 1).astype(np.int64)  # Zipf's law
    generator = np.random.default_rng(0)
    text_ids = generator.choice(words, 4 * chunk_size, p=counts / counts.sum()).astype(np.int32)
    corpus = EncodedCorpus(text_ids, np.arange(0, len(text_ids) + 1, 32))
    sampler = chunk_sampler(corpus, counts, chunk_size=chunk_size)
    chunk = next(sampler)
    sampler.close()

    tables = functools.partial(
        jose_trainer.initial_tables,
        sizes={"words": words, "contexts": words, "documents": documents},
        dimension=dimension,
        shards=mesh.size,
    )
    state = abstract_state(tables, optax.identity(), mesh=mesh, rules=jose_trainer.RULES)
    step = jax.jit(
        functools.partial(
            jose_trainer.train_step,
            objective="two_hinges",
            margin=0.15,
            text_rows=sampler.text_rows,
        ),
        donate_argnums=0,
        out_shardings=(state.shardings, NamedSharding(mesh, PartitionSpec())),
    )
    place = batch_sharding(mesh)
    arrays = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), chunk)
    # Any device may hold the row that a word moves. To gather what moves it is less than a sum over
    # devices of all rows of the chunk would be: 94 rows a block, once, against 74 twice.
    moves = tuple((*places.shape, dimension) for places in (chunk.centers, chunk.negatives))
    return Step(step, (state, arrays), len(chunk.centers), True, gathered=moves)


BASE = PRESETS["base"]
GPT = dataclasses.replace(
    BASE,
    data=dataclasses.replace(BASE.data, length=1024),
    model=ModelConfig(  # 1.3 billion parameters
        features=2048,
        num_layers=24,
        num_heads=16,
        feedforward_features=8192,
        norm_position="pre",
        activation="gelu_tanh",
        initial_scale=0.02,
        remat="full",
    ),
    objective=ObjectiveConfig(kind="causal"),
    training=dataclasses.replace(BASE.training, batch_size=128),
)
STEPS: dict[str, Callable[[Mesh], Step]] = {
    # Vocabularies are rounded up to what the mesh divides.
    "base": functools.partial(pretraining, BASE, 30592),
    "gpt-1.3b": functools.partial(pretraining, GPT, 50304),
    "on-lstm": ordered_language_model,
    "on-lstm-logic": logic_classifier,
    "conditional-text": conditional_text,
    "image-captioning": image_captions,
    "weight-averaging": averaged_resnet,
    "self-orthogonality": self_orthogonal_classifier,
    "energy": energy_model,
    "jose": spherical_embeddings,
}
