"""The experiment as a user runs it: what it must reach, going on where it stopped, mistakes."""

import json

import numpy as np
import pytest

from experiments.smooth_metrics import train
from experiments.smooth_metrics.config import Config, TrainingConfig


@pytest.mark.slow
def test_smoke_reaches_what_it_must(smoke, capsys):
    summary, expected = smoke("smooth_metrics", "f1")
    smallest = summary["bias"][0]
    assert smallest["batch size"] == 8
    assert smallest["mean of batch F1"] <= expected["mean_of_batch_f1_at_8_at_most"]
    assert smallest["gradient error, batch"] >= expected["gradient_error_batch_at_8_at_least"]
    most = expected["gradient_error_streaming_at_8_at_most"]
    assert smallest["gradient error, streaming"] <= most
    for row in summary["bias"]:
        error = abs(row["mean of streaming F1"] - row["F1 of all"])
        assert error <= expected["mean_of_streaming_f1_error_at_most"]
    for scores in summary["scores"].values():
        for name, least in expected["f1_at_least"].items():
            assert np.mean(scores[name]["f1"]) >= least
        most = expected["f1_of_smooth_accuracy_at_most"]
        assert np.mean(scores["smooth accuracy"]["f1"]) <= most
    assert "smooth accuracy" in capsys.readouterr().out


def test_a_stopped_run_goes_on_with_the_next_batch_size(tmp_path, monkeypatch):
    config = Config(
        workdir=str(tmp_path), training=TrainingConfig(batch_sizes=(8, 16), num_seeds=2)
    )
    sizes = []

    def untrained(learners, split, size, config):
        sizes.append(size)
        if sizes == [8, 16]:
            raise KeyboardInterrupt
        kernel, bias = np.zeros((2, 1, split.x.shape[1], 1)), np.ones((2, 1, 1))
        model = [{"kernel": kernel, "bias": bias}]
        return dict.fromkeys(learners, model)

    columns = ("batch size", "mean of batch F1", "mean of streaming F1", "F1 of all")
    monkeypatch.setattr(train, "train_all", untrained)
    monkeypatch.setattr(train, "bias_table", lambda *_, **__: [dict.fromkeys(columns, 1.0)])
    with pytest.raises(KeyboardInterrupt):
        train.run(config)
    first = (tmp_path / "metrics.jsonl").read_text()
    train.run(config)
    assert sizes == [8, 16, 16]  # what was finished was not done again
    assert (tmp_path / "metrics.jsonl").read_text().startswith(first)
    assert set(json.loads((tmp_path / "summary.json").read_text())["scores"]) == {"8", "16"}


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--data.positive-class=10", "data.positive_class must be one of the labels"),
        ("--data.validation-share=0.6", "data.validation_share must leave samples for training"),
        ("--data.label-noise=1", "data.label_noise must be in [0, 1), got 1.0"),
        ("--training.weight-decays=-1", "training.weight_decays must not be negative, got (-1.0,)"),
        ("--data.positive-share=0", "data.positive_share must be in (0, 1), got 0.0"),
        ("--training.num-seeds=1", "training.num_seeds must be at least 2, got 1"),
        ("--bias.rows=1000", "bias.batch_sizes must divide bias.rows = 1000"),
    ],
)
def test_mistakes_end_in_one_line(flag, message, refused):
    refused("smooth_metrics", flag, message)


def test_tuned_threshold_is_the_best_of_all():
    generator = np.random.default_rng(0)
    targets = (generator.random(50) < 0.3).astype(float)
    logits = generator.normal(size=50) + targets
    threshold = train.best_threshold(logits, targets)
    found = train.exact_f1(logits > threshold, targets)
    cuts = [-np.inf, *np.sort(logits)]
    assert found == pytest.approx(max(train.exact_f1(logits > cut, targets) for cut in cuts))
    assert train.exact_f1(np.zeros(3), np.zeros(3)) == 0


def test_noise_exchanges_as_many_labels_of_either_class():
    positive = np.arange(100) < 20
    targets = train.exchange(np.random.default_rng(0), positive, 0.25)
    assert targets.sum() == 20
    assert (targets != positive)[:20].sum() == (targets != positive)[20:].sum() == 5


def test_settings_are_chosen_on_the_validation_samples():
    x = np.array([[-2.0], [-1.0], [1.0], [2.0]], np.float32)
    part = train.Part(np.arange(4)[None], np.float32([[0, 0, 0, 1]]))
    swapped = part._replace(targets=1 - part.targets)
    # Two settings: the first is right on one half of the samples, the second has x upside down.
    parameters = [{"kernel": np.ones((1, 2, 1, 1)), "bias": np.zeros((1, 2, 1))}]
    parameters[0]["kernel"][0, 1] = -1
    scores = train.test_all({"F": parameters}, train.Split(x, part, part, part))["F"]
    assert scores["f1"] == [pytest.approx(2 / 3)]
    assert scores["tuned_f1"] == [1.0]
    worse = train.test_all({"F": parameters}, train.Split(x, part, swapped, part))["F"]
    assert worse["f1"] == [0.0]
