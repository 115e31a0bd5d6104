"""Trains on documents, scores the vectors, and leaves files that other programs read."""

import pathlib
import time
from typing import Any

import numpy as np
from jax.sharding import Mesh

from zoo import spherical
from zoo.spherical import JoseEmbeddings, JoseTrainer
from zoo.spherical.corpus import Tokenizer, letters
from zoo.spherical.evaluation import (
    classify_documents,
    cluster_documents,
    read_word_pairs,
    word_similarity,
)
from zoo.spherical.word2vec import WordVectors, save_word2vec
from zoo.training import Loop, MetricsLog, open_workdir, results_table

from ..command_line import MAY_CHANGE, local_path
from ..pictures import save_figure
from ..running import finish, on_devices, open_mesh
from . import figures
from .config import Config
from .documents import Documents, read_documents

SIMILARITY = {
    "WordSim-353": "wordsim353/combined.csv",
    "MEN": "MEN/MEN_dataset_natural_form_full",
    "SimLex-999": "SimLex-999/SimLex-999.txt",
}

NEIGHBOURS = 3

SHORT = {
    "mutual_information": "MI",
    "normalized_mutual_information": "NMI",
    "adjusted_rand": "ARI",
    "purity": "purity",
}


def run(config: Config) -> None:
    """Runs the experiment; continues where an earlier run in the same folder stopped."""
    mesh = open_mesh(config)
    # What the evaluation needs is looked for before the training, and before there is a folder.
    figures.check_installed()
    pairs = read_pairs(config)
    documents = read_documents(config.data.uri)
    trainer = build(config, mesh, documents)
    workdir = open_workdir(config.workdir, config, ignore=MAY_CHANGE)
    corpus = trainer.corpus
    print(
        f"{config.data.uri}: {len(documents.texts):,} documents ({corpus.skipped:,} without a "
        f"known word, skipped), {len(corpus.ids):,} words, {len(trainer.vocabulary):,} "
        f"types; {config.training.passes} passes on {on_devices(mesh)}"
    )
    begin, worked = time.perf_counter(), time.process_time()
    test = documents.test
    inductive = config.evaluation.inductive and test.any() and not test.all()
    embeddings = fit(trainer, config, workdir, part=(1, 1 + bool(inductive)))
    seconds, worked = time.perf_counter() - begin, time.process_time() - worked
    rate = len(corpus.ids) * config.training.passes / seconds
    scores: dict[str, Any] = {"all documents": score(embeddings.documents, documents, config)}
    if inductive:
        vectors = inductive_vectors(config, mesh, documents, workdir)
        scores["test documents unseen"] = score(vectors, documents, config, clusters=False)
    similarity = score_words(embeddings, pairs)
    report(embeddings, scores, similarity, config)
    print(f"{rate:,.0f} words per second, {seconds:.0f} s, compilation included")
    summary = {
        "scores": scores,
        "word_similarity": similarity,
        "seconds": seconds,
        "processor_seconds": worked,
        "words_per_second": rate,
        "skipped": corpus.skipped,
    }
    finish(workdir, summary, save(workdir, embeddings, documents, config))


def build(config: Config, mesh: Mesh, documents: Documents | None = None) -> JoseTrainer:
    """The trainer, which has read the texts; ``documents`` are those of ``data.uri`` if None."""
    documents = read_documents(config.data.uri) if documents is None else documents
    return JoseTrainer(
        documents.texts,
        depends_on=documents[1:],
        min_count=config.data.min_count,
        tokenizer=tokenizer(config),
        mesh=mesh,
        initial=initial_vectors(config),
        **config.options()._asdict(),
    )


def initial_vectors(config: Config) -> JoseEmbeddings | WordVectors | None:
    """Those of ``data.initial``."""
    if config.data.initial is None:
        return None
    path = local_path(config.data.initial)
    if path.suffix == ".safetensors":
        return spherical.load_embeddings(path)
    return spherical.load_word2vec(path, binary=".bin" in path.suffixes)


def tokenizer(config: Config) -> Tokenizer:
    """How a text is cut into words."""
    return letters if config.data.words == "letters" else str.split


def fit(
    trainer: JoseTrainer,
    config: Config,
    workdir: pathlib.Path,
    suffix: str = "",
    part: tuple[int, int] = (1, 1),
) -> JoseEmbeddings:
    """Trains, with checkpoints and a log in the folder of the run."""
    loop = Loop(
        log_every=config.loop.log_every,
        checkpoint_every=config.loop.checkpoint_every,
        rate_unit="words",
        progress=config.loop.progress,
        part=part,
    )
    with MetricsLog(workdir / f"metrics{suffix}.jsonl", logger=config.loop.logger) as log:
        return trainer.fit(
            checkpoints=workdir / f"checkpoints{suffix}",
            keep=config.loop.keep_checkpoints,
            log=log,
            loop=loop,
        )


def inductive_vectors(
    config: Config, mesh: Mesh, documents: Documents, workdir: pathlib.Path
) -> np.ndarray:
    """Vectors of all documents from a model that never saw those of the test."""
    seen = [text for text, test in zip(documents.texts, documents.test, strict=True) if not test]
    unseen = [text for text, test in zip(documents.texts, documents.test, strict=True) if test]
    trainer = build(config, mesh, documents._replace(texts=seen))
    embeddings = fit(trainer, config, workdir, "_inductive", part=(2, 2))
    vectors = np.zeros((len(documents.texts), embeddings.words.shape[1]), np.float32)
    vectors[~documents.test] = embeddings.documents
    vectors[documents.test] = spherical.embed_documents(
        embeddings, unseen, tokenizer=tokenizer(config), **config.options()._asdict()
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
    if train.sum() >= NEIGHBOURS and test.any():
        scores["knn"] = classify_documents(
            vectors[train],
            documents.labels[train],
            vectors[test],
            documents.labels[test],
            neighbours=NEIGHBOURS,
        )
    for name in ("k_means", "spherical_k_means") if clusters and known.any() else ():
        scores[name] = cluster_documents(
            vectors[known],
            documents.labels[known],
            spherical=name == "spherical_k_means",
            runs=config.evaluation.runs,
        )
    return scores


def read_pairs(config: Config) -> dict[str, list[tuple[str, str, float]]]:
    """The sets of word pairs in the folder, if there is one."""
    if config.data.similarity is None:
        return {}
    folder = local_path(config.data.similarity)
    return {name: read_word_pairs(folder / path) for name, path in SIMILARITY.items()}


def score_words(
    embeddings: JoseEmbeddings, pairs: dict[str, list[tuple[str, str, float]]]
) -> dict[str, Any]:
    """Spearman's correlation on each set."""
    return {name: word_similarity(embeddings, found)._asdict() for name, found in pairs.items()}


def report(
    embeddings: JoseEmbeddings, scores: dict[str, Any], similarity: dict[str, Any], config: Config
) -> None:
    """Tables and neighbours on the terminal."""
    neighbours = [
        {f"{NEIGHBOURS} nearest neighbours": name, **parts["knn"]}
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
    words = [{"set": name, **found} for name, found in similarity.items()]
    tables = {"Classes of documents": neighbours, "Clusters": clusters, "Words": words}
    for title, rows in tables.items():
        if rows:
            results_table(rows, title=title)
    for word in config.evaluation.neighbours_of:
        if word in embeddings.vocabulary.ids:
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
    save_word2vec(words, embeddings.vocabulary.tokens, embeddings.words)
    if documents.labels is None:
        figure = figures.map_of_words(embeddings)
    else:
        figure = figures.map_of_documents(embeddings, documents, config.evaluation.map_points)
    if figure is None:
        print(f"no map: fewer than {figures.LEAST} points")
        return [model, words]
    return [model, words, save_figure(picture, figure, dpi=100)]
