"""Tables of the READMEs: each says on how many runs it stands, one cell of each is made anew.

What trains for more than 20 seconds is not: `experiments.jose` and `experiments.weight_averaging`
take about a minute, by the commands above their tables.
"""

import dataclasses
import pathlib
import re

import jax
import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[1]
PAGES = sorted((ROOT / "experiments").glob("*/README.md"))
# Several runs with their spread, or one; shares and perplexities of one run may have an interval.
RUNS = re.compile(r"±|\bone\s+run\b|\bthree\s+seeds\b", re.IGNORECASE)
AROUND = 14  # lines before a table, and behind it, that may say it
NOT_MEASURED = ("state and batch", "source's number")  # compiled, quoted


def tables(text):
    """The lines of every table that compares numbers, with the lines around it."""
    lines = text.splitlines()
    start = 0
    while start < len(lines):
        stop = start
        while stop < len(lines) and lines[stop].startswith("|"):
            stop += 1
        table = "\n".join(lines[start:stop])
        numbers = re.findall(r"\d?\.\d", "\n".join(lines[start + 2 : stop]))
        if stop - start > 3 and len(numbers) > 3 and not any(n in table for n in NOT_MEASURED):
            yield table, "\n".join(lines[max(0, start - AROUND) : stop + AROUND])
        start = max(stop, start + 1)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_tables_say_on_how_many_runs_they_stand(page):
    silent = [table for table, around in tables(page.read_text()) if not RUNS.search(around)]
    assert not silent, "\n\n".join(silent)


def test_a_silent_table_is_found():
    table = (
        "| model | score |\n| --- | ---: |\n| a | 1.5 |\n| b | 2.5 |\n| c | 3.25 |\n| d | .5 |\n"
    )
    (found,) = tables(f"# Results\n\n{table}")
    assert not RUNS.search(found[1])
    (found,) = tables(f"Mean of three\nseeds.\n\n{table}")
    assert RUNS.search(found[1])


def cells(page, row):
    """The cells of the one row of a page that begins so, without marks."""
    text = (ROOT / page).read_text().replace("**", "")
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {row} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def kneser_ney():
    from experiments.on_lstm_language_model import config, train

    found = train.ngram_perplexities(train.load(config.PRESETS["small"]))
    page = (ROOT / "experiments/on_lstm_language_model/README.md").read_text()
    row = "| 5-gram, modified Kneser-Ney | {valid:.2f} | {test:.2f} |".format(**found)
    return row, row if row in page else "absent"


def most_frequent_relation(data_directory):
    from experiments.on_lstm_logic import logic

    corpus = data_directory / "propositional_logic" / "propositional_logic.tar.xz"
    if not corpus.exists():
        pytest.skip(f"put the published corpus into {corpus}")
    pairs = logic.read_pairs(corpus)["test", 6]
    _, counts = np.unique([pair.relation for pair in pairs], return_counts=True)
    found = f"{len(pairs):,}", f"{100 * counts.max() / len(pairs):.1f}"
    row = cells("experiments/on_lstm_logic/README.md", "6")
    return found, (row[1], row[4])


def angles_without_the_first_term():
    from experiments.self_orthogonality import ablation
    from experiments.self_orthogonality.config import PRESETS

    name = "batch of 16, fewer than filters"
    settings = {s: source for s, source in ablation.SETTINGS.items() if s.name == name}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ablation, "SETTINGS", settings)
        (row,) = ablation.run(PRESETS["small"].ablation)
    page = "experiments/self_orthogonality/README.md"
    return ablation.as_text(row)["after"], cells(page, name)[2]


def digits_that_were_not_trained_on():
    from experiments.energy_model import config, train
    from experiments.energy_model.judge import score, train_classifier

    chosen = config.PRESETS["small"]
    data = train.load(chosen)
    classify = train_classifier(*data.train, chosen.evaluation, noise=chosen.data.noise)
    found = score(*classify(data.test[0]), classify(data.train[0])[1])
    page = (ROOT / "experiments/energy_model/README.md").read_text()
    row = "| test digits | " + " | ".join(f"{value:.2f}" for value in found.values()) + " |"
    return row, row if row in page else "absent"


def uniform_density():
    from experiments.energy_plane import train
    from experiments.energy_plane.config import PRESETS

    points = train.grid(PRESETS["small"].cells)
    exact = [train.normalized(density(points)) for density in (train.rings, train.mixture)]
    found = [f"{train.divergence(cells, 0 * cells):.3f}" for cells in exact]
    return found, cells("experiments/energy_plane/README.md", "uniform density")[1:3]


def captions_of_similar_digits():
    from experiments.image_captioning import config, scores, train

    data = train.load(config.PRESETS["small"])
    test, training = (data.sets[split].captions for split in ("test", "train"))
    vectors = [data.vectors.scaled[split] for split in ("test", "train")]
    found = scores.baselines(test, training, *vectors)["a caption of the most similar picture"]
    row = "a caption of the most similar training picture"
    text = (ROOT / "experiments/image_captioning/README.md").read_text()
    (line,) = re.findall(rf"^\| {row} \| (94.*) \|$", text, re.MULTILINE)
    return [f"{value:.2f}" for value in found.values()], line.split(" | ")


def entropies_of_the_plays():
    from experiments.pretraining import config, train

    chosen = config.PRESETS["small"]
    found = train.count_entropies(train.load(chosen))
    page = (ROOT / "experiments/pretraining/README.md").read_text()
    text = "the unigram entropy is {:.3f}, the bigram entropy {:.3f}".format(*found.values())
    return text, text if text in page.replace("\n", " ") else "absent"


def bias_of_small_batches():
    from experiments.smooth_metrics.bias import bias_table
    from experiments.smooth_metrics.config import PRESETS

    chosen = PRESETS["small"]
    key = jax.random.key(chosen.training.seed)
    remembered = chosen.training.remembered_examples
    smallest = dataclasses.replace(chosen.bias, batch_sizes=chosen.bias.batch_sizes[:1])
    (row,) = bias_table(smallest, key, remembered_examples=remembered)
    found = [f"{row[name]:.3f}".lstrip("0") for name in ("mean of batch F1", "F1 of all")]
    stated = cells("experiments/smooth_metrics/README.md", str(row["batch size"]))
    return found, [stated[1], stated[4]]


def real_reviews():
    from experiments.conditional_text import config, metrics, train

    data = train.load(config.PRESETS["small"])
    removed = train.banned(data.vocabulary)
    texts = [tuple(i for i in ids.tolist() if i not in removed) for ids in data.held_out.ids]
    found = " / ".join(f"{100 * metrics.distinct(texts, n):.1f}" for n in (1, 2, 3))
    text = (ROOT / "experiments/conditional_text/README.md").read_text()
    return found, found if f"| {found} |" in text else "absent"


def attention_on_the_mirror(tmp_path, capsys):
    from experiments.attention_map import __main__ as attention_map

    attention_map.main(["--output", str(tmp_path / "map.png")])
    printed = [line for line in capsys.readouterr().out.splitlines() if "mirrored" in line]
    text = (ROOT / "zoo/capture/README.md").read_text()
    return printed, [line for line in text.splitlines() if line in printed]


REMADE = (
    kneser_ney,
    most_frequent_relation,
    angles_without_the_first_term,
    digits_that_were_not_trained_on,
    uniform_density,
    captions_of_similar_digits,
    entropies_of_the_plays,
    bias_of_small_batches,
    real_reviews,
    attention_on_the_mirror,
)


@pytest.mark.slow
@pytest.mark.parametrize("remake", REMADE, ids=lambda remake: remake.__name__)
def test_a_cell_of_the_page_is_made_anew(remake, request):
    names = remake.__code__.co_varnames[: remake.__code__.co_argcount]
    with jax.numpy_rank_promotion("allow"), jax.default_device(jax.devices()[0]):
        found, stated = remake(*map(request.getfixturevalue, names))
    assert found == stated
