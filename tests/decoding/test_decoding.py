"""Sampling and beam search against answers by hand, and on the models of the library."""

import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from scipy import stats

from tests.battery import quick_jit
from tests.transformer.test_model import build
from zoo.decoding import beam_search, filter_logits, guide, prefill, sample
from zoo.decoding.filters import penalize_repetition
from zoo.decoding.steps import Prefilled, guide_logits
from zoo.ordered import OnLstmLanguageModel
from zoo.training import functional, make_mesh, put_batch
from zoo.training.placement import shardings
from zoo.transformer import Transformer, TransformerConfig, placement_rules
from zoo.transformer.layers import LayerNorm

P = np.array([0.5, 0.3, 0.15, 0.05])
END = 3


def markov(tokens, table):
    """Only the last token matters: the state is the table of transitions, log P[last, next]."""
    return table[tokens], table


def random_table(size, seed=0):
    z = 1.5 * np.random.default_rng(seed).normal(size=(size, size))
    return jax.nn.log_softmax(jnp.asarray(z, jnp.float32))


def kept(filtered):
    return np.flatnonzero(np.isfinite(filtered)).tolist()


def test_filters_of_the_original():
    logits = jnp.log(jnp.asarray(P, jnp.float32))
    assert kept(filter_logits(logits, top_p=0.6)) == [0, 1]
    assert kept(filter_logits(logits, top_p=0.5)) == [0]
    assert kept(filter_logits(logits, top_p=1.0)) == [0, 1, 2, 3]
    assert kept(filter_logits(logits, top_k=3)) == [0, 1, 2]
    assert kept(filter_logits(logits, min_p=0.29)) == [0, 1, 2]
    assert kept(filter_logits(logits, temperature=0.5, min_p=0.29)) == [0, 1]
    # Each on what the one before left: {0, 1, 2} has 0.95, and 0.85 of it needs all three.
    assert kept(filter_logits(logits, top_k=3, top_p=0.85)) == [0, 1, 2]
    assert kept(filter_logits(logits, top_p=0.8)) == [0, 1]
    np.testing.assert_allclose(filter_logits(logits, temperature=2.0), logits / 2, rtol=1e-6)
    np.testing.assert_array_equal(
        filter_logits(jnp.array([1.0, 2.0, 2.0]), temperature=0), [-np.inf, 0, -np.inf]
    )


def test_nucleus_by_definition():
    z = 3 * np.random.default_rng(0).normal(size=(40, 50)).astype(np.float32)
    run = quick_jit(lambda z, p: filter_logits(z, top_p=p))
    for top_p in (1e-6, 0.1, 0.5, 0.9, 0.97, 1.0):
        p = np.exp(z.astype(float)) / np.exp(z.astype(float)).sum(axis=1, keepdims=True)
        order = np.argsort(-p, axis=1)
        sums = np.take_along_axis(p, order, axis=1).cumsum(axis=1)
        count = (sums < top_p - 1e-9).sum(axis=1) + 1 if top_p < 1 else np.full(len(z), 50)
        found = run(jnp.asarray(z), jnp.float32(top_p))
        np.testing.assert_array_equal(np.isfinite(found).sum(axis=1), count)
        np.testing.assert_array_equal(  # and they are the likeliest
            np.isfinite(np.take_along_axis(np.asarray(found), order, axis=1)),
            np.arange(50) < count[:, None],
        )


def test_rows_without_a_choice_and_numbers_out_of_range():
    nothing = jnp.full((1, 3), -jnp.inf)
    for options in ({"top_k": 1}, {"top_p": 0.5}, {"min_p": 0.5}, {"temperature": 0}):
        assert kept(filter_logits(nothing, **options)[0]) == []
    z = jnp.array([1.0, 2.0])

    @quick_jit
    def filtered(temperature, top_p, min_p, penalty):
        return (
            filter_logits(z, temperature=temperature),
            filter_logits(z, top_p=top_p),
            filter_logits(z, min_p=min_p),
            penalize_repetition(z, jnp.array([0, 1]), penalty=penalty),
        )

    for numbers in ((-1.0, 1.5, -0.1, 0.0), (-1e-30, 0.0, 1.1, -1.0)):
        assert jnp.isnan(jnp.stack(filtered(*numbers))).all()
    assert jnp.isnan(filter_logits(z.at[0].set(jnp.nan), top_k=1)).any()


@pytest.mark.slow
def test_samples_keep_their_law():
    """χ² of 8192 draws per setting, at level 1e-3 with fixed seeds."""

    def law(weights):
        return np.asarray(weights) / np.sum(weights)

    settings = (  # what is not static is an argument of one program
        ({"temperature": 1.0, "top_p": 1.0, "min_p": 0.0}, P),
        ({"temperature": 2.0, "top_p": 1.0, "min_p": 0.0}, law(P**0.5)),
        ({"temperature": 1.0, "top_p": 0.6, "min_p": 0.0}, law(P * [1, 1, 0, 0])),
        ({"temperature": 1.0, "top_p": 0.81, "min_p": 0.0}, law(P * [1, 1, 1, 0])),
        ({"temperature": 1.0, "top_p": 1.0, "min_p": 0.25}, law(P * [1, 1, 1, 0])),
        ({"temperature": 0.5, "top_p": 0.9, "min_p": 0.0}, law(P**2 * [1, 1, 0, 0])),
        ({"top_k": 2, "banned": (0,)}, law(P * [0, 1, 1, 0])),
    )
    table = jnp.asarray(np.tile(np.log(P), (4, 1)), jnp.float32)
    count = 4096
    for seed, (setting, expected) in enumerate(settings):
        found = sample(
            jax.random.key(seed), markov, table, start=np.zeros(count, int), max_length=2, **setting
        )
        possible = expected > 0
        pairs = np.zeros((4, 4), int)
        np.add.at(pairs, tuple(np.asarray(found.tokens).T), 1)
        assert pairs.sum() == pairs[possible][:, possible].sum()
        # Two tokens of a row are independent, so this also sees a key that is used twice.
        joint = np.outer(expected, expected)[possible][:, possible]
        test = stats.chisquare(pairs[possible][:, possible].ravel(), count * joint.ravel())
        assert test.pvalue > 1e-3, (setting, pairs)
        np.testing.assert_allclose(found.log_probabilities, np.log(P)[found.tokens], rtol=1e-5)


def test_end_minimum_and_repetition():
    z = jnp.log(jnp.array([[0.3, 0.25, 0.05, 0.4]] * 4))
    greedy = functools.partial(
        sample, jax.random.key(0), markov, z, start=[0, 1], max_length=5, temperature=0
    )
    plain = greedy(end_id=END, pad_id=2)
    np.testing.assert_array_equal(plain.tokens, [[3, 2, 2, 2, 2]] * 2)
    np.testing.assert_array_equal(plain.lengths, [0, 0])
    np.testing.assert_allclose(plain.log_probabilities, [[np.log(0.4), 0, 0, 0, 0]] * 2, rtol=1e-5)
    later = greedy(end_id=END, min_length=2)
    np.testing.assert_array_equal(later.tokens, [[0, 0, 3, 0, 0]] * 2)
    np.testing.assert_array_equal(later.lengths, [2, 2])
    # log .3 · 1.5 < log .25, log .25 · 1.5 < log .3 · 1.5: then 0 again.
    varied = greedy(banned=[END], repetition_penalty=1.5)
    np.testing.assert_array_equal(varied.tokens, [[0, 1, 0, 0, 0]] * 2)
    found = beam_search(markov, z, start=[0], state_axes=None, beam_size=1, max_length=5)
    np.testing.assert_array_equal(found.tokens, [[[3] * 5]])


def test_a_row_whose_logits_are_nan_is_marked_and_the_others_continue():
    table = random_table(4).at[1].set(jnp.nan)
    table = table.at[0].set(jnp.log(jnp.array([0.1, 0.0, 0.9, 0.0]))).at[2].set(table[0])
    found = sample(jax.random.key(0), markov, table, start=[0, 1], max_length=3, temperature=0)
    np.testing.assert_array_equal(found.tokens[1], [-1] * 3)
    np.testing.assert_array_equal(found.lengths, [3, 0])
    np.testing.assert_array_equal(jnp.isnan(found.log_probabilities), [[False] * 3, [True] * 3])
    beams = beam_search(markov, table, start=[0, 1], state_axes=None, beam_size=2, max_length=3)
    assert (beams.tokens[1] == -1).all()
    np.testing.assert_array_equal(jnp.isnan(beams.scores), [[False] * 2, [True] * 2])
    np.testing.assert_array_equal(beams.tokens[0, 0], [2, 2, 2])


def texts(size, max_length):
    """All texts that end within max_length or are cut there."""
    words = [token for token in range(size) if token != END]
    for length in range(max_length):
        for text in itertools.product(words, repeat=length):
            yield (*text, END)
    yield from itertools.product(words, repeat=max_length)


def ranked(log_probability, size, max_length, penalty):
    """Every text with its score by definition, best first."""
    scored = [
        (log_probability(text) / len(text) ** penalty, text) for text in texts(size, max_length)
    ]
    return sorted(scored, key=lambda pair: -pair[0])


@pytest.mark.parametrize(("max_length", "num_results"), [(2, 4), (3, 2)])
def test_beams_that_cover_the_space_find_the_best_texts(max_length, num_results):
    """Four tokens, one of which ends: four beams are more than all hypotheses of two tokens.

    Of three tokens, a hypothesis is lost only if its sum is the least of nine: the two best are
    those of this table all the same.
    """
    table = random_table(4, seed=3)
    starts = [0, 2]
    for penalty in (0.0, 1.0, -0.5, 2.0):
        found = beam_search(
            markov,
            table,
            start=starts,
            state_axes=None,
            beam_size=4,
            num_results=num_results,
            max_length=max_length,
            length_penalty=penalty,
            end_id=END,
        )
        for row, start in enumerate(starts):

            def log_probability(text, start=start):
                return sum(float(table[a, b]) for a, b in itertools.pairwise((start, *text)))

            expected = ranked(log_probability, 4, max_length, penalty)[:num_results]
            np.testing.assert_allclose(found.scores[row], [s for s, _ in expected], rtol=1e-5)
            for beam, (_, text) in enumerate(expected):
                assert found.lengths[row, beam] == len(text) - (text[-1] == END)
                assert found.tokens[row, beam].tolist() == [*text] + [0] * (max_length - len(text))


class ShiftedNorm(LayerNorm):
    """A norm with a condition."""

    def __init__(self, num_features, *, epsilon, rngs):
        super().__init__(num_features, epsilon=epsilon, rngs=rngs)
        self.kernel = nnx.Param(jax.random.normal(rngs.params(), (3, num_features)))

    def __call__(self, x, condition):
        return super().__call__(x) + (condition @ self.kernel[...])[:, None]


CONFIG = TransformerConfig(
    vocab_size=8,
    features=8,
    num_layers=2,
    num_heads=2,
    feedforward_features=16,
    max_positions=6,
    num_segments=0,
    mask="causal",
    head="tied",
    norm_position="pre",
    initial_scale=0.5,
)
PROMPT = np.array([[1, 5, 2], [6, 0, 4]], np.int32)
CONDITION = np.random.default_rng(1).normal(size=(2, 3)).astype(np.float32)


def transformer():
    return Transformer(CONFIG, make_norm=ShiftedNorm, rngs=nnx.Rngs(0)), CONDITION


def on_lstm():
    model = OnLstmLanguageModel(8, 8, 8, 2, chunk_size=4, rngs=nnx.Rngs(0))
    model.embedding[...] *= 4.0
    return model, None


@pytest.mark.slow
@pytest.mark.parametrize("build", [pytest.param(transformer, marks=pytest.mark.slow), on_lstm])
def test_beams_over_a_model_are_its_likeliest_texts(build):
    """Eight tokens of which three are allowed: eight beams are all hypotheses of four tokens.

    The texts are scored without a cache, which shows beams that got the wrong state.
    """
    model, condition = build()
    banned, size = (2, 4, 5, 6, 7), 8
    conditions = {} if condition is None else {"condition": jnp.repeat(condition, 31, axis=0)}
    every = np.array([text + (0,) * (4 - len(text)) for text in texts(3 + 1, 4) if 2 not in text])
    lengths = np.array([len(text) for text in texts(3 + 1, 4) if 2 not in text])

    @quick_jit
    def both(model):
        read = prefill(model, jnp.asarray(PROMPT), max_length=4, condition=condition)
        found = beam_search(
            read.step_fn,
            read.state,
            start=read.start,
            state_axes=read.state_axes,
            beam_size=size,
            max_length=4,
            banned=banned,
            end_id=END,
        )
        rows = jnp.concatenate(
            [jnp.repeat(PROMPT, 31, axis=0), jnp.tile(every[:, :-1], (2, 1))], axis=1
        )
        output = model(rows, **conditions)
        logits = getattr(output, "logits", output)[:, 2:]
        return found, jax.nn.log_softmax(logits.at[..., jnp.array(banned)].set(-jnp.inf))

    found, log_p = both(model)
    assert len(every) == 31
    each = np.take_along_axis(np.asarray(log_p), np.tile(every, (2, 1))[..., None], axis=-1)[..., 0]
    sums = np.where(np.arange(4) < np.tile(lengths, 2)[:, None], each, 0).sum(axis=1).reshape(2, 31)
    np.testing.assert_allclose(np.exp(sums).sum(axis=1), 1, rtol=1e-5)  # these are all texts
    for row in range(2):
        best = np.argsort(-sums[row])[:size]
        np.testing.assert_allclose(found.scores[row], sums[row, best], rtol=1e-5)
        np.testing.assert_array_equal(found.tokens[row], every[best])


def by_hand(table, start, max_length, *, context=(), endings=(), min_length=0, ngram=None,
            allowed=lambda text: range(5), width=1, groups=1, diversity=0.0, alpha=0.0, kept=1,
            greedy=False):  # fmt: skip
    """Texts, lengths and scores of :func:`beam_search` (or of greedy samples) for one row."""

    def next_tokens(text):
        before = (*context, *text)
        now = table[len(text)] if table.ndim == 3 else table
        z = np.array(now[text[-1] if text else start], np.float64)
        for token in range(len(z)):
            grams = [before[i : i + ngram] for i in range(len(before) - ngram + 1)] if ngram else []
            repeats = (*before, token)[-(ngram or 1) :] in grams
            early = (token,) in endings and len(text) < min_length
            if repeats or early or token not in allowed(before):
                z[token] = -np.inf
        return z - np.logaddexp.reduce(z)

    live, finished = [[((), 0.0)] for _ in range(groups)], [[] for _ in range(groups)]
    for _ in range(max_length):
        taken = np.zeros(5)
        for group in range(groups):
            candidates = []
            for text, total in live[group]:
                log_p = next_tokens(text)
                tokens = [log_p.argmax()] if greedy else range(len(log_p))
                for token in tokens:
                    longer, s = (*text, int(token)), total + log_p[token]
                    found = [
                        len(ending)
                        for ending in endings
                        if longer[-len(ending) :] == ending
                        and len(longer) - len(ending) >= min_length
                    ]
                    if found:
                        score = s / len(longer) ** alpha
                        finished[group].append((score, longer, len(longer) - max(found)))
                    else:
                        candidates.append((s - diversity * taken[token], s, longer))
            best = sorted(candidates, reverse=True)[:width]
            live[group] = [(text, s) for steered, s, text in best if s > -np.inf]
            for text, _ in live[group]:
                taken[text[-1]] += 1
    for group in range(groups):
        finished[group] += [(s / max_length**alpha, text, max_length) for text, s in live[group]]
        finished[group] = sorted(finished[group], reverse=True)[:kept]
    return [text for group in finished for text in group]


def alternating(tokens, end):
    """Odd tokens after even ones and the reverse, ``[R, 5]``; anything first."""
    last = jnp.take(tokens, end - 1, axis=1, mode="clip")
    return ((jnp.arange(5)[None] + last[:, None]) % 2 == 1) | (end == 0)


RULES = {
    "several ends": (
        {"end_id": [3, 4], "stop_sequences": [(1, 2), (0, 1, 2), (2, 2)], "min_length": 1},
        {"endings": ((3,), (4,), (1, 2), (0, 1, 2), (2, 2)), "min_length": 1},
    ),
    "no n-gram twice, of prompt and text": (
        {"no_repeat_ngram": 2, "context": [[-1, 2, 0, 2], [3, 1, 4, -1]], "end_id": 3},
        {"ngram": 2, "endings": ((3,),)},
    ),
    "no token twice": ({"no_repeat_ngram": 1}, {"ngram": 1}),
    "allowed tokens": (
        {"allowed_tokens": alternating, "end_id": 3},
        {
            "allowed": lambda text: [v for v in range(5) if not text or (text[-1] + v) % 2],
            "endings": ((3,),),
        },
    ),
}


@pytest.mark.parametrize("name", RULES)
def test_rules_by_hand(name):
    """Beams and greedy samples against plain loops over lists."""
    options, rules = RULES[name]
    table, starts = random_table(5, seed=4), [0, 2]
    contexts = [[t for t in row if t >= 0] for row in options.get("context", [[], []])]
    beams = beam_search(
        markov, table, start=starts, state_axes=None, beam_size=3, max_length=5,
        length_penalty=0.5, **options,
    )  # fmt: skip
    drawn = sample(
        jax.random.key(0), markov, table, start=starts, max_length=5, temperature=0, **options
    )
    for row, start in enumerate(starts):
        search = functools.partial(by_hand, table, start, 5, context=contexts[row], **rules)
        for beam, (score, text, length) in enumerate(search(width=3, alpha=0.5, kept=3)):
            assert beams.scores[row, beam] == pytest.approx(score, rel=1e-5)
            assert beams.tokens[row, beam].tolist() == [*text] + [0] * (5 - len(text))
            assert beams.lengths[row, beam] == length
        ((_, text, length),) = search(greedy=True)
        assert drawn.tokens[row].tolist() == [*text] + [0] * (5 - len(text))
        assert drawn.lengths[row] == length


def clocked(tokens, state):
    """A table of transitions for every step: no two orders of tokens are equally probable."""
    tables, step = state
    return tables[step, tokens], (tables, step + 1)


def test_diverse_beams_by_hand():
    tables, starts = jnp.stack([random_table(5, seed) for seed in range(4)]), [0, 2]
    found = beam_search(
        clocked, (tables, 0), start=starts, state_axes=None, beam_size=4, num_groups=2,
        diversity_penalty=1.5, max_length=4, end_id=END, min_length=2,
    )  # fmt: skip
    for row, start in enumerate(starts):
        expected = by_hand(
            tables, start, 4, endings=((END,),), min_length=2, width=2, groups=2, diversity=1.5,
            kept=2,
        )  # fmt: skip
        np.testing.assert_allclose(found.scores[row], [s for s, *_ in expected], rtol=1e-5)
        texts = [[*text] + [0] * (4 - len(text)) for _, text, _ in expected]
        assert found.tokens[row].tolist() == texts
        assert found.lengths[row].tolist() == [length for *_, length in expected]
    assert (found.tokens[:, :2] != found.tokens[:, 2:]).any(axis=(1, 2)).all()


def test_several_samples_of_each_row():
    """One state per row, repeated; the copies of a row are independent and keep the law."""
    table = jnp.log(jnp.array([P, P[::-1]], jnp.float32))
    found = sample(
        jax.random.key(0), lambda tokens, state: (state, state), table, start=[0, 1], max_length=2,
        num_samples=2048,
    )  # fmt: skip
    assert found.tokens.shape == found.log_probabilities.shape == (2, 2048, 2)
    assert found.lengths.shape == (2, 2048)
    for row, p in enumerate((P, P[::-1])):
        pairs = np.zeros((4, 4), int)
        np.add.at(pairs, tuple(np.asarray(found.tokens[row]).T), 1)
        assert stats.chisquare(pairs.ravel(), 2048 * np.outer(p, p).ravel()).pvalue > 1e-3


PADDED = np.array([[1, 5, 2, 7], [6, 3, 0, 0], [3, 8, 1, 0]])
GIVEN = np.arange(4) < np.array([[4], [2], [3]])
UNEQUAL = {
    "prefix": {"mask": "prefix", "num_segments": 2, "norm_position": "post", "head": "mlm"},
    "causal": {},
    "rotary": {"positions": "rotary"},
    "recurrent": None,
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "prefix",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("causal", "rotary", "recurrent")),
    ],
)
def test_prompts_of_unequal_length_are_continued_as_if_alone(name):
    """Padded on the right, on the left and in between; a prefix as by a call of the model."""
    changes = UNEQUAL[name]
    if changes is None:
        model = OnLstmLanguageModel(9, 8, 8, 2, chunk_size=4, rngs=nnx.Rngs(0))
    else:
        options = {"vocab_size": 9, "max_positions": 7, "num_layers": 1} | changes
        model = build(dataclasses.replace(CONFIG, **options))
    graph, parameters = nnx.split(model)

    @quick_jit
    def write(parameters, prompt, mask=None):
        read = prefill(nnx.merge(graph, parameters), prompt, max_length=3, mask=mask)
        return sample(
            jax.random.key(0), read.step_fn, read.state, start=read.start, max_length=3,
            temperature=0,
        )  # fmt: skip

    order = np.array([[0, 1, 2, 3], [3, 0, 2, 1], [0, 3, 1, 2]])  # the tokens with holes
    found = [
        write(parameters, jnp.asarray(prompt), jnp.asarray(given))
        for prompt, given in (
            (PADDED, GIVEN),
            (
                np.take_along_axis(PADDED, np.argsort(GIVEN, axis=1, kind="stable"), axis=1),
                GIVEN[:, ::-1],
            ),
            (np.take_along_axis(PADDED, order, axis=1), np.take_along_axis(GIVEN, order, axis=1)),
        )
    ]
    for row in (1,) if name == "prefix" else range(3):
        prompt = PADDED[row : row + 1, : GIVEN[row].sum()]
        alone = write(parameters, jnp.asarray(prompt))
        for each in found:
            np.testing.assert_array_equal(each.tokens[row], alone.tokens[0])
            np.testing.assert_allclose(
                each.log_probabilities[row], alone.log_probabilities[0], atol=1e-5
            )
    if name == "prefix":
        ids = np.concatenate([PADDED, found[0].tokens], axis=1)[:1]
        segments = np.array([[0] * 4 + [1] * 3])
        logits = quick_jit(lambda p: nnx.merge(graph, p)(ids, segment_ids=segments))(parameters)
        np.testing.assert_array_equal(found[0].tokens[0], logits[0, 3:6].argmax(axis=-1))
    nothing = write(parameters, jnp.asarray(PADDED), jnp.asarray(GIVEN & [[True], [False], [True]]))
    np.testing.assert_array_equal(nothing.tokens[1], [-1] * 3)  # traced, it cannot be refused


def test_guidance():
    np.testing.assert_allclose(
        guide_logits(jnp.array([1.0, -jnp.inf, 2.0]), jnp.array([0.5, 1.0, 3.0]), scale=3.0),
        [2.0, -np.inf, 0.0],
    )
    # The two most likely tokens of p (p/q)² are not those of p or q.
    p, q = (jax.nn.log_softmax(random_table(4, seed)[:1].repeat(4, axis=0)) for seed in (1, 2))
    read = [Prefilled(markov, table, jnp.array([0, 0]), None) for table in (p, q)]
    for scale, expected in ((0.0, q), (3.0, 3 * p - 2 * q)):
        both = guide(*read, scale=scale)
        found = sample(
            jax.random.key(0), both.step_fn, both.state, start=both.start, max_length=1,
            temperature=0,
        )  # fmt: skip
        assert (found.tokens == jnp.argmax(expected[0])).all()
        beams = beam_search(
            both.step_fn,
            both.state,
            start=both.start,
            state_axes=both.state_axes,
            beam_size=4,
            max_length=1,
        )
        np.testing.assert_allclose(
            beams.scores[0], np.sort(jax.nn.log_softmax(expected[0]))[::-1], rtol=1e-5
        )


@pytest.mark.slow
def test_the_cache_lies_on_the_mesh_like_the_model():
    """Rows over data, heads over model; the same texts as on one device."""
    config = dataclasses.replace(CONFIG, num_layers=1)
    init, merge = functional(lambda rngs: Transformer(config, rngs=rngs))

    @quick_jit
    def write(parameters, prompt):
        read = prefill(merge(parameters), prompt, max_length=2)
        found = beam_search(
            read.step_fn,
            read.state,
            start=read.start,
            state_axes=read.state_axes,
            beam_size=2,
            max_length=2,
        )
        return found, read.step_fn(read.start, read.state)[1].memory

    prompt = np.random.default_rng(0).integers(8, size=(4, 3)).astype(np.int32)
    parameters = init(jax.random.key(0))
    expected, _ = write(parameters, prompt)
    mesh = make_mesh(data=2, model=2, devices=jax.devices()[:4])
    places = shardings(parameters, mesh, placement_rules(config))
    with jax.set_mesh(mesh):
        found, cache = write(jax.device_put(parameters, places), put_batch(prompt, mesh))
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-4)
    for leaf in (cache[0].keys, cache[0].values):  # [B, N, …]
        wanted = NamedSharding(mesh, PartitionSpec("data", "model"))
        assert leaf.sharding.is_equivalent_to(wanted, leaf.ndim), leaf.sharding


def test_mistakes_are_named():
    table = random_table(4)
    draw = functools.partial(sample, jax.random.key(0), markov, table, start=[0], max_length=3)
    search = functools.partial(
        beam_search, markov, table, start=[0], state_axes=None, beam_size=2, max_length=3
    )
    model = nnx.eval_shape(lambda: Transformer(CONFIG, rngs=nnx.Rngs(0)))
    prompt, condition = jnp.zeros((2, 4), jnp.int32), jnp.ones((2, 3))

    def read(prompt=prompt, **options):
        options = {"max_length": 2} | options
        return jax.eval_shape(lambda model: prefill(model, prompt, **options).state, model)

    def flat(tokens, state):
        return table[0], state

    def growing(tokens, state):
        return table[tokens], (state, state)

    def stepping(step_fn):
        return sample(jax.random.key(0), step_fn, table, start=[0], max_length=1)

    def guided(*starts):
        return guide(*(Prefilled(markov, table, jnp.array(s), None) for s in starts), scale=1)

    mistakes = (
        ("top_k must be at least 1 and at most 4, got 5", lambda: draw(top_k=5)),
        ("stop_sequences must be sequences of at least one id", lambda: draw(stop_sequences=[3])),
        ("stop_sequences must be sequences .*got ..", lambda: search(stop_sequences=[[]])),
        ("stop_sequences must be .*at most 3, got 4", lambda: draw(stop_sequences=[[1, 4]])),
        ("end_id must be .*at most 3, got 4", lambda: draw(end_id=[1, 4])),
        ("no_repeat_ngram must be at least 1, got 0", lambda: draw(no_repeat_ngram=0)),
        ("num_samples must be at least 1, got 0", lambda: draw(num_samples=0)),
        (r"state_axes .* of 1 rows .* got 0 for a leaf \[4, 4\]", lambda: draw(num_samples=2)),
        (r"state_axes .* got -3 for a leaf \[4, 4\]", lambda: search(state_axes=-3)),
        (r"context must have shape \[B, P\], where B is 1", lambda: draw(context=[[0], [1]])),
        ("context must be an array of integers", lambda: search(context=[[0.5]])),
        (
            r"allowed_tokens must return bool \[1, 4\] for tokens \[1, 3\], got bool \[4\]",
            lambda: draw(allowed_tokens=lambda tokens, end: jnp.ones(4, bool)),
        ),
        ("num_groups must divide .*got 2 for 3 and 3", lambda: search(beam_size=3, num_groups=2)),
        ("num_groups must be .*at most 2, got 3", lambda: search(num_groups=3)),
        ("diversity_penalty must be more than 0 for num_groups=2", lambda: search(num_groups=2)),
        ("diversity_penalty must be .*≥ 0, got -1", lambda: search(diversity_penalty=-1)),
        ("mask must be bool, .* got int32", lambda: read(mask=prompt)),
        ("mask must leave every row of prompt a token", lambda: read(mask=prompt > 0)),
        ("top_k must be .*, got 0", lambda: draw(top_k=0, temperature=0)),
        ("top_p must be .*> 0 and ≤ 1, got 0", lambda: draw(top_p=0.0)),
        ("top_p must be .*> 0 and ≤ 1, got 5", lambda: filter_logits(table, top_p=5)),
        ("min_p must be .*≥ 0 and ≤ 1, got 2", lambda: draw(min_p=2)),
        ("temperature must be .*≥ 0, got -1", lambda: draw(temperature=-1)),
        ("temperature must be .*finite.*got nan", lambda: draw(temperature=np.nan)),
        ("logits must be a floating-point array, got int32", lambda: filter_logits(prompt)),
        ("penalty must be .*> 0, got 0", lambda: draw(repetition_penalty=0)),
        ("banned must leave .* all of them", lambda: draw(banned=range(4))),
        ("until min_length", lambda: search(banned=(0, 1, 2), end_id=3, min_length=1)),
        ("banned must be .*at most 3, got 4", lambda: draw(banned=[4])),
        ("end_id must be at least 0.*got -1", lambda: draw(end_id=-1)),
        ("pad_id must be .*at most 3, got 9", lambda: search(pad_id=9)),
        ("min_length must be .*at most 3, got 4", lambda: draw(min_length=4)),
        ("max_length must be at least 1, got 0", lambda: draw(max_length=0)),
        ("beam_size must be .*at most 4, got 5", lambda: search(beam_size=5)),
        ("num_results must be .*at most 2, got 3", lambda: search(num_results=3)),
        ("length_penalty must be .*finite", lambda: search(length_penalty=np.nan)),
        ("start must be an array of integers, got float32", lambda: draw(start=[0.5])),
        (r"start must be \[B\].*got \(1, 0\)", lambda: draw(start=prompt[:1, :0])),
        (r"step_fn must return logits \[1, V\].*got \(4,\)", lambda: stepping(flat)),
        ("step_fn must return a state of the form", lambda: stepping(growing)),
        ("max_length=4 need a cache of 7: length .* at most 6", lambda: read(max_length=4)),
        ("tokens in prompt must be at least 1, got 0", lambda: read(prompt[:, :0])),
        ("prompt must be an array of integers, got float32", lambda: read(prompt * 1.0)),
        ("max_length must be at least 1, got 0", lambda: read(max_length=0)),
        (r"condition .* B is 2 in prompt; got \[3, 3\]", lambda: read(condition=jnp.ones((3, 3)))),
        (
            "None for a recurrent",
            lambda: prefill(on_lstm, prompt, max_length=1, condition=condition),
        ),
        ("one shape, got", lambda: guide_logits(table[0], table, scale=1)),
        (r"unconditional must have shape \[B\].*got \[2\]", lambda: guided([0], [0, 1])),
        ("tokens must be .*integers", lambda: penalize_repetition(table, table, penalty=2.0)),
    )
    for message, call in mistakes:
        with pytest.raises((ValueError, TypeError), match=message):
            call()


@pytest.mark.parametrize("top_p", [0.1, 0.25, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("size", [4, 100])
def test_of_equal_probabilities_as_many_stay_as_it_takes(size, top_p):
    kept = jnp.isfinite(filter_logits(jnp.zeros((2, size)), top_p=top_p))
    assert kept.sum(axis=-1).tolist() == [math.ceil(top_p * size - 1e-4)] * 2
    assert kept[:, 0].all()


def test_numbers_may_be_of_any_kind():
    """Of Python, NumPy or JAX, of any width: the same texts, and the same errors."""
    table = random_table(5)

    def write(integer, real, ids):
        drawn = sample(
            jax.random.key(0),
            markov,
            table,
            start=ids([0, 1]),
            max_length=integer(6),
            end_id=integer(3),
            pad_id=integer(2),
            min_length=integer(1),
            top_k=integer(4),
            banned=ids([1]),
            temperature=real(0.5),
            top_p=real(0.875),
            min_p=real(0.125),
            repetition_penalty=real(1.5),
        )
        found = beam_search(
            markov,
            table,
            start=ids([0, 1]),
            state_axes=None,
            beam_size=integer(3),
            num_results=integer(2),
            max_length=integer(6),
            end_id=integer(3),
            banned=ids([1]),
            length_penalty=real(0.5),
        )
        return drawn.tokens, found.tokens

    expected = write(int, float, list)
    for integer, real in ((np.uint8, np.float64), (jnp.int32, jnp.float32), (np.int64, np.float16)):
        found = write(integer, real, lambda ids, kind=integer: kind(ids))
        jax.tree.map(np.testing.assert_array_equal, found, expected)
    for label, error, options in (
        ("end_id must be an integer", TypeError, {"end_id": np.float32(3)}),
        ("end_id must be at least 0", ValueError, {"end_id": jnp.int8(-1)}),
        ("max_length must be an integer", TypeError, {"max_length": jnp.float32(3)}),
        ("repetition_penalty must be .*> 0", ValueError, {"repetition_penalty": jnp.float32(-1)}),
        ("key must be a typed key", TypeError, {"key": jax.random.PRNGKey(0)}),
    ):
        call = {"key": jax.random.key(0), "start": [0], "max_length": 2} | options
        with pytest.raises(error, match=label):
            sample(call.pop("key"), markov, table, **call)


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("on_lstm", "bfloat16"),
        pytest.param("on_lstm", "float16", marks=pytest.mark.slow),
        pytest.param("transformer", "bfloat16", marks=pytest.mark.slow),
        pytest.param("transformer", "float16", marks=pytest.mark.slow),
    ],
)
def test_a_model_in_half_precision_is_continued(kind, dtype):
    """From ids of 8 bits; and an unknown one gives no other text."""
    model = on_lstm()[0] if kind == "on_lstm" else Transformer(CONFIG, rngs=nnx.Rngs(0))
    graph, parameters = nnx.split(model)
    parameters = jax.tree.map(lambda leaf: leaf.astype(dtype), parameters)

    @quick_jit
    def write(parameters, prompt):
        read = prefill(nnx.merge(graph, parameters), prompt, max_length=2)
        return sample(jax.random.key(0), read.step_fn, read.state, start=read.start, max_length=2)

    found = write(parameters, jnp.asarray(PROMPT, jnp.int8))
    assert found.log_probabilities.dtype == jnp.float32
    assert jnp.isfinite(found.log_probabilities).all()
    for unknown in (-1, 8):
        marked = write(parameters, jnp.asarray(PROMPT, jnp.int8).at[1, 0].set(unknown))
        np.testing.assert_array_equal(marked.tokens, [found.tokens[0], [-1, -1]])


divided = jax.jit(lambda z, temperature: filter_logits(z, temperature=temperature))


@pytest.mark.parametrize("temperature", [0.0, 1e-40, 1e-37, 1e-3, 30.0])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_any_temperature_orders_tokens_alike(temperature, dtype):
    """Down to 0, traced or not; what is excluded reaches no derivative."""
    tied = jnp.array([1.0, 3.0, 3.0, 2.0, -jnp.inf], dtype)
    for z in (tied, tied.at[1].set(60_000.0), tied - 50, tied.at[2].set(jnp.inf)):
        found = np.asarray(divided(z, temperature), np.float32)
        np.testing.assert_array_equal(filter_logits(z, temperature=temperature), found)
        wide = np.asarray(z, np.float64)
        best = wide == wide.max()
        # The limit: all of it at the best, or at the first of them for 0.
        wide = np.where(np.isinf(wide.max()), np.where(best, 0, -np.inf), wide)
        expected = np.exp(np.maximum((wide - wide.max()) / max(temperature, 1e-300), -1e3))
        if temperature < 1e-38:
            expected = (np.arange(5) == best.argmax()).astype(float)
        with np.errstate(all="ignore"):
            p = np.exp(found - found.max()) / np.exp(found - found.max()).sum()
        np.testing.assert_allclose(p, expected / expected.sum(), atol=0.03)
    slope = jax.grad(lambda t: jax.nn.softmax(divided(tied, t))[0])(2.0)
    assert jnp.isfinite(slope)


def test_a_penalty_reaches_nothing_excluded():
    z = jnp.array([2.0, -2.0, 1.0, -jnp.inf])
    tokens = jnp.array([0, 1, 3])
    run = quick_jit(jax.jacfwd(lambda p: penalize_repetition(z, tokens, penalty=p)))
    slopes = run(2.0)
    np.testing.assert_allclose(slopes, [-0.5, -2, 0, 0])
    table = random_table(4)
    run = quick_jit(
        lambda p: (
            sample(
                jax.random.key(0), markov, table, start=[0], max_length=5, repetition_penalty=p
            ).tokens
        )
    )
    np.testing.assert_array_equal(
        run(1.5),
        sample(
            jax.random.key(0), markov, table, start=[0], max_length=5, repetition_penalty=1.5
        ).tokens,
    )
    assert (run(-1.0) == -1).all()  # out of its range


def test_a_hypothesis_that_is_dead_decides_nothing():
    """What follows a token of probability 0 may be NaN, and a text may have no continuation."""
    z = jnp.log(jnp.array([0.5, 0.3, 0.2, 0.0]))

    def step_fn(tokens, after):
        return jnp.where(tokens[:, None] == after[0], after[1], z[None]), after

    def search(after, **options):
        found = beam_search(
            step_fn, after, start=[1], state_axes=None, beam_size=4, max_length=2, **options
        )
        return found.tokens[0].tolist(), np.exp(found.scores[0])

    tokens, p = search((jnp.float32(3), jnp.nan))
    assert tokens[0] == [0, 0]
    np.testing.assert_allclose(p, [0.25, 0.15, 0.15, 0.1], rtol=1e-5)
    tokens, p = search((jnp.float32(0), -jnp.inf))
    assert tokens[0] == [1, 0]
    np.testing.assert_allclose(p, [0.15, 0.1, 0.09, 0.06], rtol=1e-5)
    tokens, p = search((jnp.float32(1), -jnp.inf))  # nothing at all
    assert tokens == [[-1, -1]] * 4
    assert (p == 0).all()
    traced = quick_jit(lambda a: search_scores(step_fn, (jnp.float32(9), 0.0), a))
    assert jnp.isnan(traced(jnp.nan)).all()


def search_scores(step_fn, state, penalty):
    return beam_search(
        step_fn,
        state,
        start=[1],
        state_axes=None,
        beam_size=2,
        max_length=2,
        length_penalty=penalty,
    ).scores


def test_no_rows():
    table, none = random_table(4), np.zeros(0, np.uint8)
    drawn = sample(jax.random.key(0), markov, table, start=none, max_length=3)
    assert drawn.tokens.shape == (0, 3)
    found = beam_search(
        markov, table, start=none, state_axes=None, beam_size=2, max_length=3, end_id=END
    )
    assert found.tokens.shape == (0, 2, 3)
    assert filter_logits(jnp.ones((0, 4)), top_p=0.5, top_k=2, min_p=0.1).shape == (0, 4)
