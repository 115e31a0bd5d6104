"""The trainer: its step against the public functions, samples against laws, runs, bad text."""

import gzip
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from zoo import spherical
from zoo.spherical import trainer as trainer_module
from zoo.spherical.corpus import EncodedCorpus, read_corpus
from zoo.spherical.objective import two_hinges_loss
from zoo.spherical.options import JoseOptions
from zoo.spherical.sampling import ChunkSampler
from zoo.spherical.word2vec import WordVectors
from zoo.training import make_mesh

ONE_DEVICE = make_mesh(devices=jax.devices()[:1])
SMALL = {
    "dimension": 8,
    "passes": 10,
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


def triples(chunk, options, part):
    """Rows (center, context, document, negative) of the triples of a step, one by one."""
    offsets = [o for o in range(-options.window, options.window + 1) if o]
    pairs, own = [], []
    for block, t in np.ndindex(chunk.valid.shape):
        around = chunk.word_rows[chunk.centers[block]]
        negatives = chunk.word_rows[chunk.negatives[block]]
        word, window = around[t + options.window], options.window
        document = chunk.document_rows[chunk.documents[block, t]]
        for offset in offsets[part :: options.steps]:
            if -chunk.left[block, t] <= offset <= chunk.right[block, t]:
                for k in range(options.negatives):
                    negative = negatives[(offset + window) * options.negatives + k]
                    center = around[t + window + offset]
                    pairs += [(center, word, document, negative)] * int(negative != word)
        counts = chunk.valid[block, t] and t % options.steps == part
        for k in range(options.negatives if counts else 0):
            negative = negatives[(t * options.negatives + k) % len(negatives)]
            own += [(word, word, document, negative)] * int(negative != word)
    return np.array(pairs).T, np.array(own).T


def vectors(tables, rows):
    names = ("words", "contexts", "documents", "words")
    return [tables[name][row] for name, row in zip(names, rows, strict=True)]


@pytest.mark.slow
@pytest.mark.parametrize("objective", [pytest.param("two_hinges", marks=pytest.mark.slow), "joint"])
def test_a_chunk_takes_steps_of_riemannian_sgd_on_the_sums_of_the_public_losses(objective):
    lines, _ = topics(documents=6)
    options = {"objective": objective, "subsample": 0, "passes": 1, "steps": 2}
    trainer = spherical.JoseTrainer(lines, **SMALL | options)
    _, full, *_, last = list(trainer.chunks)
    assert last.valid.sum() < 64 == full.valid.sum()
    options, start = trainer.options, trainer.state.parameters
    step = trainer_module.compile_step(options, trainer.chunks.text_rows)
    for chunk in (full, last):
        tables, hinges, count, still = start, 0.0, 0, {name: True for name in start}
        for part in range(options.steps):
            pairs, own = triples(chunk, options, part)

            @jax.value_and_grad
            def loss(tables, pairs=pairs, own=own):
                u, v, d, negative = vectors(tables, pairs)
                if objective == "joint":
                    return jnp.sum(spherical.jose_loss(u, v, d, negative))
                u_own, _, d, own_negative = vectors(tables, own)
                neighbours = two_hinges_loss(u, v, negative)
                return jnp.sum(neighbours) + jnp.sum(two_hinges_loss(u_own, d, own_negative))

            def gap(u, target, negative):
                return np.maximum(0, options.margin - np.sum((u - negative) * target, axis=1)).sum()

            u, v, d, negative = map(np.asarray, vectors(tables, pairs))
            hinges += gap(u, v + d if objective == "joint" else v, negative)
            count += pairs.shape[1]
            if objective == "two_hinges":
                u, _, d, negative = map(np.asarray, vectors(tables, own))
                hinges, count = hinges + gap(u, d, negative), count + own.shape[1]
            _, gradients = loss(tables)
            optimizer = spherical.riemannian_sgd(float(chunk.rate[0]), angular=objective == "joint")
            updates, _ = optimizer.update(gradients, optimizer.init(tables), tables)
            still = {name: still[name] & ~gradients[name].any(axis=1) for name in still}
            tables = optax.apply_updates(tables, updates)

        state, metrics = step(jax.tree.map(jnp.copy, trainer.state), chunk)
        assert metrics["loss"] == pytest.approx(hinges / count, rel=1e-5)
        for name, table in state.parameters.items():
            np.testing.assert_allclose(table, tables[name], atol=2e-6, err_msg=name)
            rows = np.asarray(still[name])
            assert rows.any()
            assert (table[rows] == start[name][rows]).all()  # to the last bit


def sampler(corpus, counts, **changes):
    options = {"window": 2, "passes": 1, "subsample": 0.0, "shuffle": True, "chunk_size": 32}
    options |= {"block_size": 8}
    return ChunkSampler(corpus, np.asarray(counts), JoseOptions(**options | changes))


@pytest.fixture(scope="module")
def numbered():
    """100 documents of 0 to 40 words, each word a different number."""
    lengths = np.random.default_rng(0).integers(0, 40, 100)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    ids = np.arange(starts[-1], dtype=np.int32)
    return EncodedCorpus(ids, starts), np.ones(len(ids), int)


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
        EncodedCorpus(ids, starts), counts, subsample=1e-2, chunk_size=1024, block_size=32
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
    corpus = EncodedCorpus(ids, np.array([0, 5000]))
    chunks = sampler(corpus, np.ones(5000, int), shuffle=False)
    words = [chunk.word_rows[chunk.centers[:, 2:10]][chunk.valid] for chunk in chunks]
    np.testing.assert_array_equal(np.concatenate(words), ids)


def test_a_position_is_restored(numbered):
    chunks = sampler(*numbered, passes=2)
    before = [next(chunks) for _ in range(70)]
    state = chunks.get_state()
    after = list(chunks)
    again = sampler(*numbered, passes=2)
    again.set_state(state)
    for ours, theirs in zip(again, after, strict=True):
        assert all((a == b).all() for a, b in zip(ours, theirs, strict=True))
    assert state["position"][0] == 1
    assert len(before) + len(after) <= chunks.most_chunks
    assert chunks.most_chunks <= 1.3 * (len(before) + len(after))
    assert chunks.expected_steps == pytest.approx(len(before) + len(after), rel=0.05)


TEXT = ["a b a c", "b c b a", "c a"]


def test_passes_and_subsampling_fit_the_corpus_unless_one_is_given():
    def chosen(**options):
        options = spherical.JoseTrainer(TEXT, min_count=1, mesh=ONE_DEVICE, **options).options
        return options.passes, options.subsample

    assert chosen() == (80, 1e-4)
    assert chosen(passes=3) == (3, 1e-3)
    assert chosen(subsample=0) == (10, 0)


def identity(texts=TEXT, **options):
    return spherical.JoseTrainer(texts, **SMALL | options).chunks.get_state()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"passes": 3}, "passes was 10, is 3"),
        ({"objective": "joint"}, "objective was 'two_hinges', is 'joint'"),
        ({"margin": 0.3}, "margin was 0.15, is 0.3"),
        ({"seed": 1}, "seed was 0, is 1"),
        ({"texts": TEXT[::-1]}, "text was"),
        ({"texts": ["a b a c b", "c b a", "c a"]}, "text was"),
        ({"texts": [text.replace("a", "x") for text in TEXT]}, "vocabulary was"),
        ({"tokenizer": lambda text: text.upper().split()}, "vocabulary was"),
        ({"tokenizer": lambda text: text.split()[::-1]}, "text was"),
    ],
)
def test_a_position_belongs_to_its_text_and_settings(changes, message):
    state = json.loads(json.dumps(identity(passes=np.int64(10), margin=np.float64(0.15))))
    trainer = spherical.JoseTrainer(TEXT, **SMALL)
    trainer.chunks.set_state(state)
    other = spherical.JoseTrainer(**{"corpus": changes.pop("texts", TEXT)} | SMALL | changes)
    with pytest.raises(ValueError, match=f"belongs to another run: .*{message}"):
        other.chunks.set_state(state)


def test_a_position_belongs_to_what_else_is_named():
    state = json.loads(json.dumps(identity(depends_on=np.arange(3))))
    new = lambda labels: spherical.JoseTrainer(TEXT, **SMALL, depends_on=labels).chunks  # noqa: E731
    new(np.arange(3)).set_state(state)
    with pytest.raises(ValueError, match="content was"):
        new(np.zeros(3, int)).set_state(state)
    del state["sampler"]["content"]  # of a run that did not name it
    new(np.zeros(3, int)).set_state(state)
    del state["sampler"]["steps"]  # of an earlier version, which took one
    new(np.zeros(3, int)).set_state(state)
    two = spherical.JoseTrainer(TEXT, **SMALL, steps=2)
    with pytest.raises(ValueError, match="steps was 1, is 2"):
        two.chunks.set_state(state)


def test_negatives_need_counts():
    corpus = EncodedCorpus(np.zeros(3, np.int32), np.array([0, 3]))
    for counts in (None, np.array([2, 0]), np.array([], int)):
        with pytest.raises(ValueError, match="counts must be ≥ 1 for each word"):
            ChunkSampler(corpus, counts, JoseOptions())


def test_a_run_that_is_not_finite_ends():
    trainer = spherical.JoseTrainer(TEXT * 50, **SMALL, subsample=0, learning_rate=1e25)
    with pytest.raises(FloatingPointError, match="not finite"):
        trainer.fit(loop=trainer_module.LOOP._replace(log_every=5))


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
    number = np.array([int(word[1:]) for word in embeddings.vocabulary.tokens])
    own = number < 120
    assert topic_accuracy(embeddings.words[own], number[own] // 30) > 0.8
    nearest = embeddings.most_similar("w0", count=5)
    assert sum(int(word[1:]) < 30 for word, _ in nearest) >= 4


def test_unseen_documents_come_to_their_topic(toy):
    embeddings, _, labels = toy
    lines, others = topics(seed=7, documents=40)
    vectors = spherical.embed_documents(embeddings, [*lines, "unknown words", ""])
    assert not vectors[40:].any()
    nearest = np.argmax(vectors[:40] @ embeddings.documents.T, axis=1)
    assert np.mean(labels[nearest] == others) > 0.9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"negatives": 0}, "negatives must be at least 1, got 0"),
        ({"passes": -3}, "passes must be at least 1, got -3"),
        ({"margin": np.float32(-1)}, "margin must be .*> 0"),
        ({"learning_rate": jnp.nan}, "learning_rate must be .*> 0, got nan"),
        # Also what embedding sets itself.
        ({"window": -1}, "window must be at least 1 and at most 127, got -1"),
        ({"objective": "x"}, "objective must be one of"),
        ({"shuffle": "maybe"}, "shuffle must be one of False, True; got 'maybe'"),
        ({"dimension": 7}, "dimension must be that of the model, 16, got 7"),
        ({"tokenizer": str.lower}, "tokenizer must give words, got the string 'w1 w2'"),
    ],
)
def test_options_of_embedding_are_checked(toy, options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        spherical.embed_documents(toy[0], ["w1 w2"], **options)


@pytest.mark.slow
def test_tables_split_over_eight_devices_give_the_same_vectors():
    lines, _ = topics(documents=24)
    options = SMALL | {"passes": 1, "chunk_size": 128}
    alone = spherical.train_jose(lines, **options)
    trainer = spherical.JoseTrainer(lines, **options | {"mesh": make_mesh(fsdp=8)})
    shards = trainer.state.parameters["words"].addressable_shards
    assert {shard.data.shape[0] for shard in shards} == {shards[0].data.shape[0]}
    assert len({str(shard.index) for shard in shards}) == 8
    split = trainer.fit()
    for ours, theirs in zip(split[:3], alone[:3], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


@pytest.mark.slow
def test_given_vectors_are_where_it_starts(toy):
    embeddings, lines, _ = toy
    options = SMALL | {"dimension": 16, "passes": 1}
    corpus = [*lines[:-1], "w0 new new new"]  # as many documents
    trainer = spherical.JoseTrainer(corpus, **options, initial=embeddings)
    drawn = spherical.JoseTrainer(corpus, **options).embeddings()
    start, new = trainer.embeddings(), trainer.vocabulary.ids["new"]
    np.testing.assert_allclose(start.documents, embeddings.documents, atol=1e-7)
    for name in ("words", "contexts"):
        ours, theirs = getattr(start, name), getattr(embeddings, name)
        np.testing.assert_array_equal(ours[new], getattr(drawn, name)[new])
        for word in ("w0", "w7"):
            row = trainer.vocabulary.ids[word]
            expected = theirs[embeddings.vocabulary.ids[word]]
            np.testing.assert_allclose(ours[row], expected, atol=1e-7)
    further = trainer.fit()
    assert topic_accuracy(further.documents[:-1], toy[2][:-1]) > 0.9  # after one pass
    assert (further.words != start.words).any()

    # Words and vectors of any length and origin; the rest is drawn.
    vectors = WordVectors(
        ("w7", "w0", "absent"), np.eye(16, dtype=np.float32)[:3] * [[3], [0], [1]]
    )
    start = spherical.JoseTrainer(corpus, **options, initial=vectors).embeddings()
    np.testing.assert_array_equal(start.word("w7"), np.eye(16)[0])
    np.testing.assert_array_equal(start.word("w0"), drawn.word("w0"))  # zero has no direction
    np.testing.assert_array_equal(start.contexts, drawn.contexts)
    np.testing.assert_array_equal(start.documents, drawn.documents)


def test_given_vectors_belong_to_the_run_or_are_refused():
    vectors = WordVectors(("a", "b"), np.eye(8, dtype=np.float32)[:2])
    other = WordVectors(("a", "b"), np.eye(8, dtype=np.float32)[1:3])
    state = identity(initial=vectors)
    spherical.JoseTrainer(TEXT, **SMALL, initial=vectors).chunks.set_state(state)
    for initial in (None, other):
        with pytest.raises(ValueError, match="belongs to another run"):
            spherical.JoseTrainer(TEXT, **SMALL, initial=initial).chunks.set_state(state)
    for words, table, message in (
        (("x", "y"), vectors.vectors, "vectors of words of the corpus, got none"),
        (("a", "b"), vectors.vectors[:, 1:], r"initial: words must have shape \[N, 8\]"),
        (("a", "b"), vectors.vectors * np.nan, "initial: words must be finite"),
    ):
        with np.errstate(invalid="ignore"), pytest.raises(ValueError, match=message):
            spherical.JoseTrainer(TEXT, **SMALL, initial=WordVectors(words, table))


# Text as it comes.


def test_empty_unknown_and_single_words(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\n".join(["a b a b", "", "zzz", "a", "  ", "b a b"]))  # no break at the end
    trainer = spherical.JoseTrainer(path, **SMALL | {"min_count": 2, "passes": 1, "subsample": 0})
    assert trainer.vocabulary.tokens == ("a", "b")
    assert trainer.vocabulary.counts.tolist() == [4, 4]
    assert np.diff(trainer.corpus.starts).tolist() == [4, 0, 0, 1, 0, 3]
    assert trainer.corpus.skipped == 3
    before = trainer.embeddings()
    embeddings = trainer.fit()
    lengths = np.linalg.norm(embeddings.documents, axis=1)
    np.testing.assert_allclose(lengths, [1, 0, 0, 1, 0, 1], atol=1e-6)
    assert (embeddings.documents[[3, 5]] != before.documents[[3, 5]]).any(axis=1).all()


def test_lines_longer_than_any_piece(tmp_path):
    path = tmp_path / "long.txt.gz"
    words = [f"w{i % 7}" for i in range(400_000)]  # 1.2 MB in one line
    with gzip.open(path, "wt", compresslevel=1) as file:
        file.write(" ".join(words) + "\nw1 w2\n")
    vocabulary, encoded = read_corpus(path)
    assert encoded.starts.tolist() == [0, 400_000, 400_002]
    assert [vocabulary.tokens[i] for i in encoded.ids[:9]] == words[:9]
    assert [vocabulary.tokens[i] for i in encoded.ids[399_990:400_000]] == words[-10:]


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (b"a b\na \xff b\n", {}, r"is not UTF-8: byte 6 holds b'\\xff'"),
        (b"a a a a\n", {}, "at least 2 words, got 1 that occurs at least min_count=1 times"),
        (b"a b\n", {"min_count": 5}, "no token that occurs at least min_count=5 times"),
        (b"", {}, "no token .* is the text empty"),
        (b"a b\n", {"learning_rate": float("nan")}, "learning_rate must be .*> 0, got nan"),
        (b"a b\n", {"margin": 0.0}, "margin must be .*> 0, got 0.0"),
        (b"a b\n", {"subsample": -1.0}, "subsample must be .*≥ 0, got -1"),
        (b"a b\n", {"passes": 0}, "passes must be at least 1, got 0"),
        (b"a b\n", {"window": 128}, "window must be at least 1 and at most 127, got 128"),
        (b"a b\n", {"dimension": 2.5}, "dimension must be an integer, got 2.5"),
        (b"a b\n", {"chunk_size": 64.0}, "chunk_size must be an integer, got 64.0"),
        (b"a b\n", {"seed": -1}, "seed must be at least 0 .*, got -1"),
        (b"a b\n", {"seed": 10**20}, "seed must be .* at most 9223372036854775807, got 1000"),
        (b"a b\n", {"shuffle": "no"}, "shuffle must be one of False, True; got 'no'"),
        (b"a b\n", {"tokenizer": str.lower}, "tokenizer must give words, got the string 'a b'"),
        (b"a b\n", {"objective": "paper"}, "one of 'two_hinges', 'joint'; got 'paper'"),
        (b"a b\n", {"chunk_size": 50}, "a multiple of block_size .*, 16, got 50"),
        (b"a b\n", {"mesh": make_mesh()}, r"a multiple of .* 8 device\(s\), 128, got 64"),
        (b"a b\n", {"min_count": 0}, "min_count must be at least 1, got 0"),
        (b"a b\n", {"speed": 9}, "unexpected keyword argument 'speed'"),
    ],
)
def test_bad_text_and_options(tmp_path, text, options, message):
    path = tmp_path / "text.txt"
    path.write_bytes(text)
    with pytest.raises((ValueError, TypeError), match=message):
        spherical.JoseTrainer(path, **SMALL | options)


def test_marks_and_compression(tmp_path):
    """Byte order marks are no part of a word, also where files were joined."""
    text = "\ufeffa b\n\ufeffa b\n".encode()
    for name, content in {
        "text.txt": text,
        "text.GZ": gzip.compress(text[:10]) + gzip.compress(text[10:]),
    }.items():
        (tmp_path / name).write_bytes(content)
        assert read_corpus(tmp_path / name, min_count=1)[0].tokens == ("a", "b")
    (tmp_path / "text.GZ").write_bytes(content[:-9])
    with pytest.raises(ValueError, match="GZ is truncated or damaged"):
        read_corpus(tmp_path / "text.GZ", min_count=1)


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
