"""The experiment as a user runs it, its formulas, batches and models."""

import collections
import io
import itertools
import lzma
import tarfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments.on_lstm_logic import logic
from experiments.on_lstm_logic.batches import LONG, SHORT, PairBatches, encode
from experiments.on_lstm_logic.config import PRESETS, TrainingConfig
from experiments.on_lstm_logic.logic import Pair
from experiments.on_lstm_logic.model import PairClassifier
from experiments.on_lstm_logic.train import build, make_optimizer
from tests.battery import quick_jit
from zoo.training import make_mesh


@pytest.mark.slow
def test_smoke_reaches_what_it_must(smoke):
    summary, expected = smoke("on_lstm_logic", "accuracy", "trees")
    for name in ("ON-LSTM", "plain LSTM"):
        accuracy = summary["mean_accuracy"]["0 to 2"][name][0]
        assert accuracy >= expected["accuracy_at_lengths_seen_at_least"], name
    assert summary["majority"]["1"] == expected["majority_at_one_operator"]
    trees = {row["trees"]: row["sentence F1"] for row in summary["trees"]}
    assert trees["best binary tree"] == 100
    assert {"ON-LSTM, greedy", "plain LSTM, unbiased", "right branching"} <= trees.keys()


@pytest.mark.parametrize("encoder", ["on_lstm", "lstm"])
def test_build_computes_nothing_and_its_step_fits(encoder):
    mesh = make_mesh(fsdp=2, model=2)
    experiment = build(PRESETS["smoke"], mesh, encoder)
    state = experiment.abstract_state(mesh)
    after, _ = jax.eval_shape(
        experiment.train_step(state.shardings), state, next(experiment.batches)
    )
    assert jax.tree.structure(after) == jax.tree.structure(state)
    kernel = state.parameters["layer"]["recurrent_kernel"]
    assert kernel.shape == (32, 4 * 32 + 2 * (8 if encoder == "on_lstm" else 1))
    assert tuple(kernel.sharding.spec) == ("fsdp", "model")


@pytest.mark.parametrize("num_steps", [1, 2, 19, 20, 40])
def test_schedules_of_short_runs(num_steps):
    optimizer = make_optimizer(TrainingConfig(epochs=1, gradient_clip=10.0), num_steps)
    parameters = jnp.zeros(1)

    def step(state, _):
        updates, state = optimizer.update(jnp.ones(1), state, parameters)
        return state, -updates[0]

    _, rates = quick_jit(lambda s: jax.lax.scan(step, s, length=num_steps))(
        optimizer.init(parameters)
    )
    assert rates.max() == pytest.approx(1e-2, rel=1e-4)
    assert (rates[0] > 0) == (num_steps < 20)
    assert (np.diff(rates[num_steps // 20 :]) < 0).all()


# Formulas.


def by_truth_table(premise, hypothesis):
    """The relation, a second time: from the rows of a truth table in which Python evaluates."""
    rows = []
    for values in itertools.product((False, True), repeat=6):
        names = dict(zip(logic.VARIABLES, values, strict=True))
        rows.append(tuple(bool(eval(formula, {}, names)) for formula in (premise, hypothesis)))
    seen = set(rows)
    if all(p == h for p, h in seen):
        return "="
    if (True, False) not in seen:
        return "<"
    if (False, True) not in seen:
        return ">"
    disjoint, exhaustive = (True, True) not in seen, (False, False) not in seen
    return "^" if disjoint and exhaustive else "|" if disjoint else "v" if exhaustive else "#"


def pythonic(formula):
    """( A ( or B ) ) as Python writes it: (A or B); the inner parentheses fall away."""
    return formula.replace("( or", "or (").replace("( and", "and (")


def test_drawn_pairs_are_right_and_different():
    parts = logic.draw_pairs(60, 0, train_operators=3, test_operators=5)
    assert {number for part, number in parts if part == "train"} == {0, 1, 2, 3}
    everything = [pair for pairs in parts.values() for pair in pairs]
    assert len(set(everything)) == len(everything)
    for (_, number), pairs in parts.items():
        for pair in pairs:
            assert max(map(logic.count_operators, pair[1:])) == number
            assert pair.relation == by_truth_table(*map(pythonic, pair[1:]))
            assert len(set(" ".join(pair[1:]).split()) & set(logic.VARIABLES)) <= 4
    assert collections.Counter(p.relation for p in everything).keys() == set(logic.RELATIONS)
    assert logic.draw_pairs(60, 0, train_operators=3, test_operators=5) == parts
    assert logic.draw_pairs(60, 1, train_operators=3, test_operators=5) != parts


def read_formula(tokens):
    """The tree that ``truth_set`` takes, read from an iterator of tokens."""
    token = next(tokens)
    return list(iter(lambda: read_formula(tokens), ")")) if token == "(" else token


def test_the_published_corpus(data_directory):
    path = data_directory / "propositional_logic" / "propositional_logic.tar.xz"
    if not path.exists():
        pytest.skip(f"put the archive of train0 … test12 at {path}")
    parts = logic.read_pairs(path)
    train = [len(parts["train", number]) for number in range(7)]
    assert train == [30, 2319, 12451, 23252, 30373, 34152, 32952]
    test = [len(parts["test", number]) for number in range(13)]
    assert test == [6, 410, 2198, 4104, 5361, 6027, 5816, 4707, 3347, 2230, 1444, 864, 853]
    for pairs in parts.values():
        for pair in pairs[:: max(1, len(pairs) // 50)]:
            sets = [logic.truth_set(read_formula(iter(text.split()))) for text in pair[1:]]
            assert logic.relation(*sets) == pair.relation


def test_gold_trees_are_the_parentheses():
    gold = logic.gold_tree("( ( not a ) ( or ( b ( and c ) ) ) )")
    assert gold.words == ("not", "a", "or", "b", "and", "c")
    assert gold.tree == [["not", "a"], ["or", ["b", ["and", "c"]]]]
    assert set(gold.constituents) == {
        ("and, or", 0, 6),
        ("not", 0, 2),
        ("operand", 2, 6),
        ("and, or", 3, 6),
        ("operand", 4, 6),
    }
    assert logic.gold_tree("a").tree == "a"
    for formula, message in (("( not a", "never closed"), ("a )", "closes nothing")):
        with pytest.raises(ValueError, match=message):
            logic.gold_tree(formula)


def write_archive(path, **files):
    with tarfile.open(path, "w:xz") as archive:
        for name, text in files.items():
            info = tarfile.TarInfo(f"logic/{name}")
            info.size = len(text.encode())
            archive.addfile(info, io.BytesIO(text.encode()))
    return path


def test_archives_and_folders(tmp_path):
    lines = "".join(f"=\ta\t{variable}\n" for variable in "aaaaaaaaab")
    path = write_archive(tmp_path / "a.tar.xz", train0=lines, test1="#\ta\t( not b )\n")
    with tarfile.open(path) as archive:
        archive.extractall(tmp_path, filter="data")
    for where in (path, tmp_path / "logic"):
        corpus = logic.open_corpus(
            f"file:{where}", train_operators=1, test_operators=1, pairs_per_count=50, seed=0
        )
        assert corpus.train == [Pair("=", "a", "a")] * 9
        assert corpus.valid == [Pair("=", "a", "b")]  # every tenth
        assert corpus.test == {1: [Pair("#", "a", "( not b )")]}
    with pytest.raises(ValueError, match="damaged or no tar archive"):
        logic.read_pairs(tmp_path / "logic" / "train0")
    with pytest.raises(ValueError, match="must hold files train0"):
        logic.read_pairs(tmp_path)


def test_damaged_archives_are_named(tmp_path):
    path = write_archive(tmp_path / "a.tar.xz", train0="=\ta\ta\n", test0="=\ta\ta\n")
    whole = lzma.decompress(path.read_bytes())
    second = 1024  # bytes of a member: header and one block
    flipped = whole[: second + 3] + b"\xff" + whole[second + 4 :]
    cut = [whole[:size] for size in (100, 600, second, second + 100, second + 600, 2 * second)]
    plain = tmp_path / "a.tar"
    for content in (flipped, *cut, b"", whole.replace(b"=", b"\xff")):
        plain.write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.tar") as caught:
            logic.read_pairs(plain)
        assert str(plain) in str(caught.value)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"a\.tar\.xz is truncated or damaged"):
        logic.read_pairs(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("=\ta", "train0, line 2: expected one of # < > = \\^ \\| v, premise and hypothesis"),
        ("?\ta\tb", r"train0, line 2: expected one of .* got '\?\\ta\\tb'"),
        ("=\ta\tx", "train0, line 2: unknown token 'x'"),
    ],
)
def test_bad_lines_are_located(line, message, tmp_path):
    path = write_archive(tmp_path / "a.tar.xz", train0=f"=\ta\ta\n{line}\n", test0="")
    with pytest.raises(ValueError, match=message):
        logic.read_pairs(path)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--data.uri=builtin:maths", "data.uri must be builtin:logic or file:PATH"),
        ("--data.uri=file:/absent", "/absent"),
        ("--model.chunk-size=7", "chunk_size must divide the number of units 32, got 7"),
        ("--data.train-operators=20", "data.test_operators must be at least 20, got 4"),
        ("--data.pairs-per-count=3", "data.pairs_per_count must be at least 50, got 3"),
    ],
)
def test_mistakes_end_in_one_line(flag, message, refused):
    refused("on_lstm_logic", f"--preset=smoke {flag}", message)


# Batches.


@pytest.fixture(scope="module")
def pairs():
    parts = logic.draw_pairs(100, 0, train_operators=6, test_operators=8)
    return [pair for pairs in parts.values() for pair in pairs]


def decode(ids, length):
    return " ".join(logic.TOKENS[number - 1] for number in ids[:length])


def test_every_pair_once_an_epoch(pairs):
    batches = PairBatches(pairs, range(len(pairs)), batch_size=2, seed=0, num_epochs=2)
    rows, shapes = [], set()
    for batch in batches:
        shapes.add((batch["longer"].shape[1], batch["shorter"].shape[1]))
        for row in np.flatnonzero(batch["valid"]):
            formulas = [
                decode(batch[name][row], batch[f"{name}_length"][row])
                for name in ("longer", "shorter")
            ]
            assert len(formulas[0].split()) >= len(formulas[1].split())
            if batch["swapped"][row]:
                formulas.reverse()
            relation = logic.RELATIONS[batch["relation"][row]]
            rows.append((Pair(relation, *formulas), batch["group"][row]))
    expected = list(zip(pairs, range(len(pairs)), strict=True))
    assert sorted(rows[: len(pairs)]) == sorted(rows[len(pairs) :]) == sorted(expected)
    assert rows[: len(pairs)] != rows[len(pairs) :]
    widest = max(len(formula.split()) for pair in pairs for formula in pair[1:])
    assert shapes == {(LONG, SHORT), (LONG, LONG), (widest, widest)}


def test_few_pairs_make_one_shape_and_batches_resume(pairs):
    batches = PairBatches(pairs, batch_size=64, seed=3)
    first = [next(batches) for _ in range(5)]
    assert len({batch["longer"].shape for batch in first}) == 1
    state = batches.get_state()
    expected = [next(batches) for _ in range(20)]  # into the second epoch
    again = PairBatches(pairs, batch_size=64, seed=3)
    again.set_state(state)
    for batch in expected:
        jax.tree.map(np.testing.assert_array_equal, batch, next(again))


# Models.

SIZES = {
    "embed_features": 5,
    "features": 4,
    "chunk_size": 2,
    "master_input": "complement",
    "classifier_features": 6,
    "dropout": 0.0,
}


@pytest.mark.slow
def test_neither_padding_nor_the_order_of_reading_changes_the_answer(pairs):
    model = nnx.split(PairClassifier("on_lstm", **SIZES, rngs=nnx.Rngs(0)))
    logits = quick_jit(lambda model, batch: nnx.merge(*model)(batch))
    batch = next(PairBatches(pairs[-200:], batch_size=8))
    expected = logits(model, batch)
    exchanged = batch | {
        "longer": np.pad(batch["shorter"], ((0, 0), (0, 30))),
        "shorter": np.pad(batch["longer"], ((0, 0), (0, 3))),
        "longer_length": batch["shorter_length"],
        "shorter_length": batch["longer_length"],
        "swapped": ~batch["swapped"],
    }
    np.testing.assert_allclose(logits(model, exchanged), expected, atol=1e-6)
    swapped = logits(model, batch | {"swapped": ~batch["swapped"]})
    assert np.abs(swapped - expected).max() > 1e-3


@pytest.mark.slow
def test_the_plain_lstm_is_one():
    model = PairClassifier("lstm", **SIZES, rngs=nnx.Rngs(1))
    ids, _ = encode(["( not ( a ( and b ) ) )", "( c ( or ( not d ) ) )"])
    x = np.asarray(model.embedding[...])[ids]
    kernel, recurrent, bias = (np.asarray(p) for p in model.layer.params)
    hidden = cell = np.zeros((2, 4))
    depths, states = [], []
    for t in range(ids.shape[1]):
        logits = x[:, t] @ kernel + hidden @ recurrent + bias
        o, candidate, i, f = np.split(logits[:, 2:], 4, axis=1)
        o, i, f = (1 / (1 + np.exp(-gate)) for gate in (o, i, f))
        cell = f * cell + i * np.tanh(candidate)
        hidden = o * np.tanh(cell)
        states.append(hidden)
        depths.append(1 - f.mean(axis=1))
    output, found = quick_jit(
        lambda ids: (model.layer(model.embedding[...][ids.T]), model.depths(ids))
    )(ids)
    np.testing.assert_allclose(output.hidden, states, atol=1e-6)
    np.testing.assert_allclose(found, np.stack(depths, axis=1), atol=1e-6)
