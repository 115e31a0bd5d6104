"""The blocked trainer: its sums against loops, its samples against laws, runs, bad text."""

import functools
import gzip

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo import spherical
from zoo.spherical.blocks import BlockMasks, BlockVectors, band, block_descent, unband
from zoo.spherical.sampling import ChunkSampler
from zoo.spherical.trainer import train_step
from zoo.training import make_mesh

ONE_DEVICE = make_mesh(devices=jax.devices()[:1])
SMALL = {
    "dimension": 8,
    "window": 2,
    "chunk_size": 64,
    "block_size": 16,
    "min_count": 1,
    "mesh": ONE_DEVICE,
}


def topics(seed=0, documents=120):
    """Four topics of 30 words with 20 shared words; the topic of each document."""
    random = np.random.default_rng(seed)
    lines, labels = [], []
    for document in range(documents):
        topic, length = document % 4, random.integers(20, 60)
        own = random.random(length) < 0.6
        words = np.where(own, 30 * topic + random.integers(30, size=length),
                         120 + random.integers(20, size=length))  # fmt: skip
        lines.append(" ".join(f"w{word}" for word in words))
        labels.append(topic)
    return lines, np.array(labels)


def test_band_and_back():
    matrix = jnp.arange(4.0 * 6).reshape(4, 6)
    found = band(matrix, 2)
    np.testing.assert_array_equal(found, [[matrix[t, t + o] for o in range(3)] for t in range(4)])
    kept = np.tril(np.triu(np.ones((4, 6))), 2)
    np.testing.assert_array_equal(unband(found, 2), matrix * kept)


@pytest.mark.parametrize("objective", ["two_hinges", "joint"])
def test_block_sums_are_those_of_a_loop_over_triples(objective):
    size, window, count, dimension, margin = 6, 2, 2, 5, 0.3
    random = np.random.default_rng(0)
    number = (2 * window + 1) * count
    shapes = (size + 2 * window, size, size, number)
    u, v, d, n = (
        np.asarray(spherical.normalize(random.normal(size=(rows, dimension)))) for rows in shapes
    )
    masks = BlockMasks(
        left=jnp.array([0, 1, 2, 0, 1, 0]),
        right=jnp.array([2, 1, 0, 2, 1, 0]),
        valid=jnp.array([True] * 5 + [False]),
        collides=jnp.asarray(random.random((number, size)) < 0.2),
    )
    found, hinge = jax.jit(functools.partial(block_descent, objective=objective, margin=margin))(
        BlockVectors(*map(jnp.asarray, (u, v, d, n))), masks
    )
    expected = BlockVectors(*map(np.zeros_like, (u, v, d, n)))
    total, triples = 0.0, 0

    def add(center, target, targets, place, negative):
        nonlocal total, triples
        triples += 1
        x = target + d[place] if objective == "joint" else target
        f, h = u[center] @ x, n[negative] @ x
        if f - h >= margin:
            return
        total += margin - f + h
        factors = (1, 1, 1) if objective == "joint" else (1 - f, 1 - f + h, 2 * h)
        expected.centers[center] += factors[0] * x
        expected.negatives[negative] -= factors[2] * x
        for table in (
            (expected.contexts, expected.documents) if objective == "joint" else (targets,)
        ):
            table[place] += factors[1] * (u[center] - n[negative])

    for t in range(size):
        for offset in range(-window, window + 1):
            if offset == 0 or not -masks.left[t] <= offset <= masks.right[t]:
                continue
            for k in range(count):
                negative = (offset + window) * count + k
                if not masks.collides[negative, t]:
                    add(t + window + offset, v[t], expected.contexts, t, negative)
        if objective == "two_hinges" and masks.valid[t]:
            for k in range(count):
                negative = (t * count + k) % number
                if not masks.collides[negative, t]:
                    add(t + window, d[t], expected.documents, t, negative)
    for name, ours, loop in zip(BlockVectors._fields, found, expected, strict=True):
        np.testing.assert_allclose(ours, loop, atol=1e-5, err_msg=name)
    assert hinge == pytest.approx(total / triples, rel=1e-5)


def sampler(corpus, counts, **changes):
    options = {
        "window": 2,
        "negatives": 2,
        "passes": 1,
        "learning_rate": 0.04,
        "subsample": 0.0,
        "shuffle": True,
        "chunk_size": 32,
        "block_size": 8,
        "seed": 0,
    }
    return ChunkSampler(corpus, np.asarray(counts), **options | changes)


@pytest.fixture(scope="module")
def numbered():
    """100 documents of 0 to 40 words, each word a different number."""
    lengths = np.random.default_rng(0).integers(0, 40, 100)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    ids = np.arange(starts[-1], dtype=np.int32)
    return spherical.EncodedCorpus(ids, starts), np.ones(len(ids), int)


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("chunk_size", [32, 8])
def test_every_word_comes_once_a_pass_with_its_neighbours(numbered, shuffle, chunk_size):
    corpus, counts = numbered
    chunks = sampler(corpus, counts, passes=2, shuffle=shuffle, chunk_size=chunk_size)
    seen, read, rates = [], 0.0, []
    for chunk in chunks:
        here = chunk.centers[:, 2:10]
        words = chunk.word_rows[here]
        documents = chunk.document_rows[chunk.documents]
        for place in zip(*np.nonzero(chunk.valid), strict=True):
            word, document = words[place], documents[place]
            assert corpus.starts[document] <= word < corpus.starts[document + 1]
            left, right = chunk.left[place], chunk.right[place]
            first, last = corpus.starts[document], corpus.starts[document + 1] - 1
            assert max(left, right) <= 2
            block, t = place
            around = chunk.word_rows[chunk.centers[block, t + 2 - left : t + 3 + right]]
            np.testing.assert_array_equal(around, np.arange(word - left, word + right + 1))
            assert left >= min(1, word - first)
            assert right >= min(1, last - word)
            seen.append(word)
        used = chunk.word_rows[chunk.word_rows < len(counts)]
        assert len(np.unique(used)) == len(used)
        read += chunk.words.sum()
        rates.append(chunk.rate[0])
    total = len(corpus.ids)
    np.testing.assert_array_equal(np.sort(seen[:total]), corpus.ids)
    assert len(seen) == 2 * total
    assert (seen[:total] == corpus.ids.tolist()) is not shuffle
    assert read == pytest.approx(2 * total, rel=1e-4)
    assert rates[0] == pytest.approx(0.04)
    assert np.all(np.diff(rates) <= 0)
    assert len(rates) <= chunks.most_chunks


def test_sampling_follows_its_laws():
    counts = np.array([60000, 3000, 300, 100])
    ids = np.repeat(np.arange(4, dtype=np.int32), counts)
    np.random.default_rng(1).shuffle(ids)
    starts = np.arange(0, len(ids) + 1, 100)
    chunks = sampler(
        spherical.EncodedCorpus(ids, starts), counts, subsample=1e-2, chunk_size=1024, block_size=32
    )
    kept, negatives, reach = np.zeros(4), np.zeros(4), []
    for chunk in chunks:
        words = chunk.word_rows[chunk.centers[:, 2:34]][chunk.valid]
        kept += np.bincount(words, minlength=4)
        negatives += np.bincount(chunk.word_rows[chunk.negatives].ravel(), minlength=4)
        inner = (chunk.left == chunk.right) & chunk.valid
        reach.append(chunk.left[inner])
    share = 1e-2 * counts.sum() / counts
    expected = counts * np.minimum(1, np.sqrt(share) + share)
    error = np.sqrt(np.maximum(expected * (1 - expected / counts), 1e-9))
    assert np.all(np.abs(kept - expected) <= 5 * error + 1e-6)
    law = counts**0.75 / np.sum(counts**0.75)
    total = negatives.sum()
    assert np.all(np.abs(negatives - total * law) <= 5 * np.sqrt(total * law))
    reach = np.concatenate(reach)
    assert abs((reach == 1).mean() - 0.5) < 0.05


def test_long_documents_are_read_in_parts():
    ids = np.arange(5000, dtype=np.int32)
    corpus = spherical.EncodedCorpus(ids, np.array([0, 5000]))
    chunks = sampler(corpus, np.ones(5000, int), shuffle=False)
    words = [chunk.word_rows[chunk.centers[:, 2:10]][chunk.valid] for chunk in chunks]
    np.testing.assert_array_equal(np.concatenate(words), ids)


def test_one_pair_moves_as_the_program_says():
    """A row that occurs once takes exactly the step of the authors' rule."""
    lines = ["a b", "c d"]
    trainer = spherical.JoseTrainer(lines, **SMALL, subsample=0, passes=1)
    chunk = next(trainer.chunks)
    trainer.chunks.close()
    place = {word: row for row, word in enumerate(trainer.vocabulary.words)}
    # Keep one triple: the context a, its neighbour b, the negative c.
    rows = chunk.word_rows.tolist()
    a, b, c = (rows.index(place[word]) for word in "abc")
    first = int(np.flatnonzero(chunk.centers[0, 2:] == a)[0])
    offset = 1 if chunk.centers[0, first + 3] == b else -1
    negatives = np.full_like(chunk.negatives, a)  # the word itself: never counted
    negatives[0, (offset + 2) * 2] = c
    silent = np.zeros_like(chunk.left)
    left, right = silent.copy(), silent.copy()
    (right if offset == 1 else left)[0, first] = 1
    chunk = chunk._replace(
        negatives=negatives, left=left, right=right, valid=np.zeros_like(chunk.valid)
    )
    before = jax.tree.map(np.asarray, trainer.state.parameters)
    u, v, n = (
        before["words"][place["b"]],
        before["contexts"][place["a"]],
        before["words"][place["c"]],
    )
    expected = spherical.two_hinges_update(u, v, n, learning_rate=chunk.rate[0], margin=9.0)
    step = functools.partial(
        train_step, objective="two_hinges", margin=9.0, text_rows=trainer.chunks.text_rows
    )
    state, _ = jax.jit(step)(trainer.state, chunk)
    after = jax.tree.map(np.asarray, state.parameters)
    np.testing.assert_allclose(after["words"][place["b"]], expected.center, atol=1e-6)
    np.testing.assert_allclose(after["contexts"][place["a"]], expected.context, atol=1e-6)
    np.testing.assert_allclose(after["words"][place["c"]], expected.negative, atol=1e-6)
    still = [place["a"], place["d"]]
    np.testing.assert_array_equal(after["words"][still], before["words"][still])  # to the last bit
    np.testing.assert_array_equal(after["documents"], before["documents"])


@pytest.fixture(scope="module")
def toy():
    """The vectors of one device, the lines, and the topics."""
    lines, labels = topics()
    trainer = spherical.JoseTrainer(lines, **SMALL | {"dimension": 16, "passes": 10})
    return trainer.fit(), lines, labels


def topic_accuracy(vectors, labels):
    cosines = vectors @ vectors.T - 2 * np.eye(len(vectors))
    return np.mean(labels[np.argmax(cosines, axis=1)] == labels)


def test_topics_are_found(toy):
    embeddings, _, labels = toy
    for table in embeddings[:3]:
        np.testing.assert_allclose(np.linalg.norm(table, axis=1), 1, atol=1e-6)
    assert topic_accuracy(embeddings.documents, labels) > 0.9
    number = np.array([int(word[1:]) for word in embeddings.vocabulary.words])
    own = number < 120
    assert topic_accuracy(embeddings.words[own], number[own] // 30) > 0.8
    nearest = embeddings.most_similar("w0", count=5)
    assert sum(int(word[1:]) < 30 for word, _ in nearest) >= 4


def test_the_joint_hinge_finds_topics_too():
    lines, labels = topics()
    options = SMALL | {"dimension": 16, "objective": "joint"}
    embeddings = spherical.train_jose(lines, **options, passes=10)
    assert topic_accuracy(embeddings.documents, labels) > 0.7


def test_unseen_documents_come_to_their_topic(toy):
    embeddings, _, labels = toy
    lines, others = topics(seed=7, documents=40)
    vectors = spherical.embed_documents(embeddings, [*lines, "unknown words", ""])
    assert not vectors[40:].any()
    nearest = np.argmax(vectors[:40] @ embeddings.documents.T, axis=1)
    assert np.mean(labels[nearest] == others) > 0.9


def test_tables_split_over_eight_devices_give_the_same_vectors(toy):
    lines, _ = topics(documents=24)
    options = SMALL | {"passes": 2, "chunk_size": 128}
    alone = spherical.train_jose(lines, **options)
    trainer = spherical.JoseTrainer(lines, **options | {"mesh": make_mesh(fsdp=8)})
    shards = trainer.state.parameters["words"].addressable_shards
    assert {shard.data.shape[0] for shard in shards} == {shards[0].data.shape[0]}
    assert len({str(shard.index) for shard in shards}) == 8
    split = trainer.fit()
    for ours, theirs in zip(split[:3], alone[:3], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_a_stopped_run_goes_on_bit_for_bit(tmp_path):
    lines, _ = topics(documents=24)
    options = SMALL | {"passes": 3}
    whole = spherical.train_jose(lines, **options)

    class Stop(Exception):
        pass

    trainer = spherical.JoseTrainer(lines, **options)
    step, calls = trainer.step, []

    def deadly(state, chunk):
        calls.append(1)
        if len(calls) == 12:
            raise Stop
        return step(state, chunk)

    trainer.step = deadly
    with pytest.raises(Stop):
        trainer.fit(checkpoints=tmp_path, checkpoint_every=5)
    resumed = spherical.train_jose(lines, **options, checkpoints=tmp_path)
    for ours, theirs in zip(resumed[:3], whole[:3], strict=True):
        np.testing.assert_array_equal(ours, theirs)
    with pytest.raises(ValueError, match=r"belongs to another run: .*seed was 0, is 1"):
        spherical.train_jose(lines, **options, seed=1, checkpoints=tmp_path)


# Text as it comes.


def test_empty_unknown_and_single_words(tmp_path):
    lines = ["a b a b", "", "zzz", "a", "  ", "b a b"]
    path = tmp_path / "text.txt"
    path.write_text("\n".join(lines))  # the last line has no break
    options = SMALL | {"min_count": 2, "passes": 1, "subsample": 0}
    trainer = spherical.JoseTrainer(path, **options)
    assert np.diff(trainer.corpus.starts).tolist() == [4, 0, 0, 1, 0, 3]
    assert trainer.corpus.skipped == 3
    embeddings = trainer.fit()
    lengths = np.linalg.norm(embeddings.documents, axis=1)
    np.testing.assert_allclose(lengths, [1, 0, 0, 1, 0, 1], atol=1e-6)
    before = spherical.JoseTrainer(path, **options).state.parameters
    assert (embeddings.documents[5] != np.asarray(before["documents"])[5]).any()


def test_corpus_of_one_word_documents():
    embeddings = spherical.train_jose(["a", "b"] * 300, **SMALL, passes=1)
    np.testing.assert_allclose(np.linalg.norm(embeddings.documents, axis=1), 1, atol=1e-6)


def test_lines_longer_than_any_piece(tmp_path):
    path = tmp_path / "long.txt.gz"
    words = [f"w{i % 7}" for i in range(400_000)]  # 1.2 MB in one line
    with gzip.open(path, "wt", compresslevel=1) as file:
        file.write(" ".join(words) + "\nw1 w2\n")
    vocabulary = spherical.build_vocabulary(path)
    encoded = spherical.encode_corpus(path, vocabulary)
    assert encoded.starts.tolist() == [0, 400_000, 400_002]
    assert [vocabulary.words[i] for i in encoded.ids[:9]] == words[:9]
    assert [vocabulary.words[i] for i in encoded.ids[399_990:400_000]] == words[-10:]


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (b"a b\na \xff b\n", {}, r"is not UTF-8: byte 6 holds b'\\xff'"),
        (b"a a a a\n", {}, "at least 2 words, got 1 of the 1"),
        (b"a b\n", {"min_count": 5}, "at least 2 words, got 0 of the 2 .*min_count=5"),
        (b"", {}, "at least 2 words, got 0 of the 0"),
        (b"a b\n", {"learning_rate": float("nan")}, "learning_rate must be positive .* got nan"),
        (b"a b\n", {"margin": 0.0}, "margin must be positive and finite, got 0.0"),
        (b"a b\n", {"subsample": -1.0}, "subsample must be at least 0, got -1"),
        (b"a b\n", {"passes": 0}, "passes must be an integer of at least 1, got 0"),
        (b"a b\n", {"dimension": 2.5}, "dimension must be an integer of at least 1, got 2.5"),
        (b"a b\n", {"objective": "paper"}, "must be 'two_hinges' or 'joint', got 'paper'"),
        (b"a b\n", {"chunk_size": 50}, "a multiple of block_size, got .*chunk_size=50"),
        (
            b"a b\n",
            {"mesh": make_mesh()},
            "a multiple of .* 8 devices, 128, got 64",
        ),
        (b"a b\n", {"min_count": 0}, "min_count must be at least 1, got 0"),
    ],
)
def test_bad_text_and_options(tmp_path, text, options, message):
    path = tmp_path / "text.txt"
    path.write_bytes(text)
    with pytest.raises(ValueError, match=message):
        spherical.JoseTrainer(path, **SMALL | options)


def test_iterators_and_bytes_are_refused():
    with pytest.raises(TypeError, match=r"can be read twice, got an iterator .generator."):
        spherical.train_jose(line for line in ["a b"])
    with pytest.raises(TypeError, match="must hold strings, got bytes"):
        spherical.train_jose([b"a b"])


def test_a_file_that_changes_while_it_is_read(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("a b a b\n" * 9)
    calls = []

    def tokenizer(text):
        calls.append(text)
        if len(calls) == 9:  # at the end of the first pass
            path.write_text("a b a b\n" * 8)
        return text.split()

    with pytest.raises(ValueError, match=r"changed while .* 36 words .* 32 in the second"):
        spherical.JoseTrainer(path, **SMALL, tokenizer=tokenizer)


def test_a_rate_that_breaks_everything_is_seen():
    """Whatever the rate, rows stay on the sphere."""
    embeddings = spherical.train_jose(["a b c d"] * 99, **SMALL, passes=1, learning_rate=1e6)
    np.testing.assert_allclose(np.linalg.norm(embeddings.words, axis=1), 1, atol=1e-6)
