"""Trains on documents, scores the vectors, and leaves files that other programs read."""

import dataclasses
import pathlib
import time
from typing import Any

import jax
import numpy as np

from experiments.command_line import MAY_CHANGE, local_path
from experiments.jose.config import Config
from experiments.jose.documents import Documents, read_documents
from zoo import spherical
from zoo.spherical import JoseEmbeddings, JoseTrainer
from zoo.training import MetricsLog, make_mesh, open_workdir, results_table, write_summary

SIMILARITY = {
    "WordSim-353": "wordsim353/combined.csv",
    "MEN": "MEN/MEN_dataset_natural_form_full",
    "SimLex-999": "SimLex-999/SimLex-999.txt",
}

SHORT = {
    "mutual_information": "MI",
    "normalized_mutual_information": "NMI",
    "adjusted_rand": "ARI",
    "purity": "purity",
}


def run(config: Config) -> None:
    """Runs the experiment; continues where an earlier run in the same folder stopped."""
    documents = read_documents(config.data.uri)
    workdir = open_workdir(config.workdir, config, ignore=MAY_CHANGE)
    trainer = make_trainer(config, documents.texts)
    corpus = trainer.corpus
    print(
        f"{config.data.uri}: {len(documents.texts):,} documents ({corpus.skipped:,} without a "
        f"known word, skipped), {len(corpus.ids):,} words, {len(trainer.vocabulary.words):,} "
        f"types; {config.training.passes} passes on {trainer.mesh.size} "
        f"{jax.devices()[0].device_kind} device(s)"
    )
    begin, worked = time.perf_counter(), time.process_time()
    embeddings = fit(trainer, config, workdir, "checkpoints")
    seconds, worked = time.perf_counter() - begin, time.process_time() - worked
    read = len(corpus.ids) * config.training.passes
    scores: dict[str, Any] = {"all documents": score(embeddings.documents, documents, config)}
    if config.evaluation.inductive and documents.test.any() and not documents.test.all():
        scores["test documents unseen"] = score(
            inductive_vectors(config, documents, workdir), documents, config, clusters=False
        )
    similarity = word_similarity(embeddings, config)
    report(embeddings, scores, similarity, config)
    files = save(workdir, embeddings, documents, config)
    summary = {
        "scores": scores,
        "word_similarity": similarity,
        "seconds": seconds,
        "processor_seconds": worked,
        "words_per_second": read / seconds,
        "skipped": corpus.skipped,
        "jax": jax.__version__,
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }
    print(f"{read / seconds:,.0f} words a second, {seconds:.0f} s, compilation included")
    files.append(write_summary(workdir, summary))
    print("written:", ", ".join(str(path) for path in files))


def make_trainer(config: Config, texts: list[str]) -> JoseTrainer:
    """The trainer with all options of the config."""
    return JoseTrainer(
        texts,
        **dataclasses.asdict(config.model),
        **dataclasses.asdict(config.training),
        min_count=config.data.min_count,
        tokenizer=tokenizer(config),
        mesh=make_mesh(**dataclasses.asdict(config.mesh)),
    )


def tokenizer(config: Config) -> Any:
    """How a text is cut into words."""
    return spherical.letters if config.data.words == "letters" else str.split


def fit(trainer: JoseTrainer, config: Config, workdir: pathlib.Path, name: str) -> JoseEmbeddings:
    """Trains, with checkpoints and a log in the folder of the run."""
    with MetricsLog(workdir / f"{name.replace('checkpoints', 'metrics')}.jsonl") as log:
        return trainer.fit(
            checkpoints=workdir / name,
            log=log,
            checkpoint_every=config.loop.checkpoint_every,
            keep=config.loop.keep_checkpoints,
            log_every=config.loop.log_every,
            progress=config.loop.progress,
        )


def inductive_vectors(config: Config, documents: Documents, workdir: pathlib.Path) -> np.ndarray:
    """Vectors of all documents from a model that never saw those of the test."""
    seen = [text for text, test in zip(documents.texts, documents.test, strict=True) if not test]
    unseen = [text for text, test in zip(documents.texts, documents.test, strict=True) if test]
    embeddings = fit(make_trainer(config, seen), config, workdir, "checkpoints_inductive")
    vectors = np.zeros((len(documents.texts), embeddings.words.shape[1]), np.float32)
    vectors[~documents.test] = embeddings.documents
    vectors[documents.test] = spherical.embed_documents(
        embeddings,
        unseen,
        passes=config.training.passes,
        negatives=config.model.negatives,
        margin=config.model.margin,
        learning_rate=config.training.learning_rate,
        subsample=config.training.subsample,
        tokenizer=tokenizer(config),
        seed=config.training.seed,
    )
    return vectors


def score(
    vectors: np.ndarray, documents: Documents, config: Config, *, clusters: bool = True
) -> dict[str, Any]:
    """Nearest neighbours and clusters of the documents whose class is known."""
    if documents.labels is None:
        return {}
    known = documents.labels >= 0
    train, test = known & ~documents.test, known & documents.test
    scores: dict[str, Any] = {}
    if train.any() and test.any():
        scores["knn"] = spherical.classify_documents(
            vectors[train], documents.labels[train], vectors[test], documents.labels[test]
        )
    if clusters:
        for name, cosines in (("k_means", False), ("spherical_k_means", True)):
            scores[name] = spherical.cluster_documents(
                vectors[known],
                documents.labels[known],
                spherical=cosines,
                runs=config.evaluation.runs,
            )
    return scores


def word_similarity(embeddings: JoseEmbeddings, config: Config) -> dict[str, Any]:
    """Spearman's correlation on each set in the folder."""
    if config.data.similarity is None:
        return {}
    folder = local_path(config.data.similarity)
    return {
        name: spherical.word_similarity(
            embeddings, spherical.read_word_pairs(folder / path)
        )._asdict()
        for name, path in SIMILARITY.items()
    }


def report(
    embeddings: JoseEmbeddings, scores: dict[str, Any], similarity: dict[str, Any], config: Config
) -> None:
    """Tables and neighbours on the terminal."""
    neighbours = [
        {"3 nearest neighbours": name, **parts["knn"]}
        for name, parts in scores.items()
        if "knn" in parts
    ]
    clusters = [
        {
            "clusters": method.replace("_", " "),
            **{SHORT[key]: f"{mean:.3f} ± {std:.3f}" for key, (mean, std) in found.items()},
        }
        for method, found in scores["all documents"].items()
        if method != "knn"
    ]
    for rows, title in ((neighbours, "Classes of documents"), (clusters, "Clusters")):
        if rows:
            results_table(rows, title=title)
    if similarity:
        results_table([{"set": name, **found} for name, found in similarity.items()], title="Words")
    for word in config.evaluation.neighbours_of:
        if word in embeddings.vocabulary.words:
            near = embeddings.most_similar(word, count=8)
            print(f"{word}: {', '.join(f'{other} {cosine:.2f}' for other, cosine in near)}")


def save(
    workdir: pathlib.Path, embeddings: JoseEmbeddings, documents: Documents, config: Config
) -> list[pathlib.Path]:
    """The vectors, and a map of documents (of words where documents have no classes)."""
    model, words, picture = (
        workdir / name for name in ("model.safetensors", "words.txt", "map.png")
    )
    spherical.save_embeddings(model, embeddings)
    spherical.save_word2vec(words, embeddings.vocabulary.words, embeddings.words)
    if documents.labels is None:
        count = min(200, len(embeddings.words))
        figure = spherical.draw_map(
            embeddings.words[:count],
            embeddings.vocabulary.words[:count],
            annotate=True,
            title="The most frequent words",
        )
    else:
        rows = np.flatnonzero((documents.labels >= 0) & embeddings.documents.any(axis=1))
        count = min(config.evaluation.map_points, len(rows))
        rows = np.random.default_rng(0).choice(rows, count, replace=False)
        labels = documents.labels[rows]
        figure = spherical.draw_map(
            embeddings.documents[rows],
            [documents.names[label] for label in labels],
            colors=labels,
            title=f"{count:,} documents by class",
        )
    figure.savefig(picture, dpi=100)
    return [model, words, picture]
