"""The models of ``zoo.load`` do what their cards say: generate, parse, fill in, sample."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import zoo
from zoo import trained
from zoo.data import Vocabulary, encode_lines, open_source
from zoo.decoding import prefill, sample
from zoo.energy import langevin, run_chain
from zoo.ordered import depths_to_tree
from zoo.ordered.trees import tree_spans
from zoo.transformer import mask_tokens

NAMES = sorted(path.stem for path in trained.WEIGHTS.glob("*.safetensors"))
load = functools.cache(zoo.load)


def held_out(vocabulary, count):
    """Ids of the first tokens of the held-out plays."""
    return encode_lines(open_source("builtin:shakespeare", split="valid"), vocabulary)[:count]


def test_files_are_small_and_each_has_a_card():
    sizes = [path.stat().st_size for path in trained.WEIGHTS.iterdir()]
    assert max(sizes) <= 3_000_000
    assert sum(sizes) <= 12_000_000
    for name in NAMES:
        assert re.findall("^## (.*)", load(name).card, re.MULTILINE) == [
            *("Use", "Data", "Command", "Numbers", "Limits")
        ]


def test_no_model_of_that_name():
    with pytest.raises(ValueError, match=r"name must be .*on_lstm_plays.*got 'on_lstm'"):
        zoo.load("on_lstm")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_snippet_of_the_card_runs(name):
    (snippet,) = re.findall(r"```python\n(.*?)```", load(name).card, re.DOTALL)
    exec(compile(snippet, name, "exec"), {"__name__": name})


def test_what_was_written_is_read(tmp_path):
    parameters = {"layers": {"1": {"kernel": np.eye(2), "bias": np.ones(2)}}}
    parameters["layers"]["3"] = {"kernel": np.ones((2, 1)), "bias": np.zeros(1)}
    vocabulary = Vocabulary(("<unk>", "<eos>", "a"), "words")
    classes = {"one": np.array([0.5, 2.0])}
    trained.write(
        tmp_path / "m.safetensors",
        "dense_energy",
        parameters,
        options={"widths": [2, 2]},
        vocabulary=vocabulary,
        classes=classes,
    )
    model, words, found = trained.read(tmp_path / "m.safetensors")
    assert words == vocabulary
    np.testing.assert_array_equal(found["one"], classes["one"])
    energy = model(jnp.array([[[[1.0]], [[-1.0]]]]))  # [1, 2, 1, 1]
    np.testing.assert_allclose(energy, jax.nn.silu(2.0) + jax.nn.silu(0.0), rtol=1e-6)


@pytest.mark.slow
def test_on_lstm_predicts_held_out_words_writes_and_parses():
    model, vocabulary, *_ = load("on_lstm_plays")
    ids = held_out(vocabulary, 2001)
    logits = nnx.jit(lambda model, ids: model(ids).logits)(model, ids[None, :-1])[0]
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, ids[1:]).mean()
    assert np.exp(loss) < 60  # 51.6 on all of them
    words = ["the", "king", "of", "england"]
    depths = model(vocabulary.ids_of(["<eos>", *words])[None]).depths.forget[:, 0, 1:]
    trees = [depths_to_tree(np.asarray(layer), words) for layer in depths]
    assert [len(tree_spans(tree)) for tree in trees] == [2, 2]  # binary trees of four words
    read = prefill(model, jnp.full((2, 1), vocabulary.end), max_length=8)
    tokens = sample(
        jax.random.key(0), read.step_fn, read.state, start=read.start, max_length=8, temperature=0
    ).tokens
    assert vocabulary.decode(tokens[0]) == vocabulary.decode(tokens[1])


def test_bert_fills_in_hidden_characters():
    model, vocabulary, *_ = load("bert_plays")
    lines = [example["text"] for example in open_source("builtin:shakespeare", split="valid")]
    cls, sep, mask = (vocabulary.ids[token] for token in ("[CLS]", "[SEP]", "[MASK]"))
    rows = [[cls, *ids[:62], sep] for ids in vocabulary.encode_batch(lines[:60]) if len(ids) > 20]
    ids = np.stack([np.pad(np.array(row), (0, 64 - len(row))) for row in rows])
    special = tuple(vocabulary.ids[token] for token in vocabulary.special)
    options = {"mask_rate": 1.0, "random_rate": 0.0, "vocab_size": len(vocabulary)}
    hidden = mask_tokens(
        jax.random.key(0), ids, word_starts=None, mask_id=mask, special_ids=special, **options
    )
    read = nnx.jit(lambda model, ids, given: model(ids, mask=given).argmax(axis=-1))
    right = (read(model, hidden.inputs, ids != 0) == ids)[hidden.weights].mean()
    most_frequent = np.bincount(ids[hidden.weights]).max() / hidden.weights.sum()
    assert right > 2 * most_frequent


@pytest.mark.slow
def test_conditional_plays_knows_the_play_and_writes():
    model, vocabulary, classes, _ = load("conditional_plays")
    lines = (
        "o romeo, romeo! wherefore art thou romeo?",
        "my lord northumberland, what says king bolingbroke?",
    )
    plays = ("Romeo and Juliet", "Richard II")

    @nnx.jit
    def losses(model, ids, conditions):
        def loss(condition):
            logits = model(ids[None, :-1], condition=condition[None])[0]
            return optax.softmax_cross_entropy_with_integer_labels(logits, ids[1:]).sum()

        return jax.vmap(loss)(conditions)

    conditions = jnp.stack([classes[play] for play in plays])
    for number, line in enumerate(lines):
        found = losses(model, jnp.array([vocabulary.end, *vocabulary.encode(line)]), conditions)
        assert found.argmin() == number
    read = prefill(model, jnp.array([[vocabulary.end]]), max_length=5, condition=conditions[:1])
    drawn = sample(jax.random.key(0), read.step_fn, read.state, start=read.start, max_length=5)
    assert (drawn.tokens >= 0).all()


@pytest.mark.slow
def test_energy_is_low_on_digits_and_falls_along_a_chain():
    model, *_ = load("energy_digits")
    source = open_source("builtin:digits")
    images = np.stack([source[row]["image"] for row in range(0, len(source), 5)])
    shuffled = np.random.default_rng(0).permuted(images.reshape(len(images), -1), axis=1)
    energies = jax.jit(model)
    digits, others = energies(images), energies(shuffled.reshape(images.shape))
    assert np.mean(digits[:, None] < others[None]) > 0.99  # AUROC
    sampler = langevin(model, step_size=1.25e-3, gradient_clip=80.0, bounds=(0.0, 1.0))
    noise = jax.random.uniform(jax.random.key(0), (20, 8, 8, 1))
    samples = run_chain(jax.random.key(1), sampler, sampler.init(noise), 300)[0].position
    assert energies(samples).mean() < (digits.mean() + energies(noise).mean()) / 2
