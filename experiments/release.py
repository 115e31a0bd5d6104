"""Trains a model of ``zoo.load`` and writes its file: ``python -m experiments.release NAME``.

The run lands in ``runs/release/NAME``, or in the folder that follows the name, and goes on there if
it was stopped; the file lands in ``zoo/weights``. Its card is written by hand, from what the run
says at its end.
"""

import dataclasses
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from zoo.trained import WEIGHTS, write
from zoo.training import TrainState

from .command_line import change
from .conditional_text import config as conditional_configs
from .conditional_text import train as conditional
from .energy_model import config as energy_configs
from .energy_model import train as energy
from .energy_model.model import GAIN
from .on_lstm_language_model import config as on_lstm_configs
from .on_lstm_language_model import train as on_lstm
from .pretraining import config as pretraining_configs
from .pretraining import corpus
from .pretraining import train as pretraining
from .running import Experiment, open_mesh, train

Content = tuple[str, Any, dict[str, Any]]  # kind, parameters and keywords of zoo.trained.write


def main(name: str, workdir: str = "") -> None:
    """Trains, or finds that the run is complete, and writes the file."""
    module, config, content = MODELS[name]
    folder = pathlib.Path(workdir or f"runs/release/{name}")
    config = dataclasses.replace(config, workdir=str(folder))
    module.run(config)
    kind, parameters, others = content(config, folder)
    write(WEIGHTS / f"{name}.safetensors", kind, parameters, **others)


def finished(module: Any, config: Any, folder: pathlib.Path) -> tuple[Experiment, TrainState, Any]:
    """The last state of a complete run, and its data."""
    mesh, data = open_mesh(config), module.load(config)
    experiment = module.build(config, mesh, data)
    return experiment, train(experiment, mesh, folder, config.loop), data


def on_lstm_plays(config: Any, folder: pathlib.Path) -> Content:
    """The language model of words."""
    _, state, data = finished(on_lstm, config, folder)
    sizes = dataclasses.asdict(config.model) | {"vocab_size": len(data.vocabulary)}
    return "on_lstm", state.parameters, {"options": sizes, "vocabulary": data.vocabulary}


def bert_plays(config: Any, folder: pathlib.Path) -> Content:
    """The masked language model of characters."""
    _, state, data = finished(pretraining, config, folder)
    sizes = dataclasses.asdict(pretraining.transformer_config(config, data.vocab_size))
    vocabulary = corpus.load_vocabulary(corpus.directory_of(config))
    return "transformer", state.parameters, {"options": sizes, "vocabulary": vocabulary}


def conditional_plays(config: Any, folder: pathlib.Path) -> Content:
    """The causal language model whose norms see the play."""
    experiment, state, data = finished(conditional, config, folder / "norm")
    model = experiment.merge(state.parameters).model
    options = dataclasses.asdict(model.config)
    options["condition_features"] = config.model.condition_features
    classes = dict(zip(data.classes, state.parameters["condition"]["table"], strict=True))
    others = {"options": options, "vocabulary": data.vocabulary, "classes": classes}
    return "transformer", state.parameters["model"], others


def energy_digits(config: Any, folder: pathlib.Path) -> Content:
    """The layers with their kernels as they are after normalisation, the pixels in 0..1."""
    experiment, state, _ = finished(energy, config, folder)
    network: Any = energy.frozen(experiment.merge, state)
    kernels = [GAIN * np.asarray(kernel()) for kernel in network.kernels]
    biases = [np.asarray(bias[...])[0] for bias in network.biases]
    biases[0], kernels[0] = biases[0] - kernels[0].sum(axis=0), 2 * kernels[0]  # of 2 x - 1
    kernels.append(np.asarray(network.output[...]).T)
    biases.append(np.asarray(network.shift[...]))
    layers = {
        str(1 + 2 * number): {"kernel": kernel, "bias": bias}
        for number, (kernel, bias) in enumerate(zip(kernels, biases, strict=True))
    }
    widths = [len(kernel) for kernel in kernels]
    return "dense_energy", {"layers": layers}, {"options": {"widths": widths}}


# What differs from the presets keeps a file below 3 MB, or its training below ten minutes.
MODELS: dict[str, tuple[Any, Any, Callable[[Any, pathlib.Path], Content]]] = {
    "on_lstm_plays": (
        on_lstm,
        change(on_lstm_configs.PRESETS["small"], data={"min_count": 4}),
        on_lstm_plays,
    ),
    "bert_plays": (
        pretraining,
        change(
            pretraining_configs.PRESETS["small"],
            model={"num_layers": 2},
            training={"num_steps": 800},
        ),
        bert_plays,
    ),
    "conditional_plays": (
        conditional,
        dataclasses.replace(conditional_configs.PRESETS["small"], variants=("norm",)),
        conditional_plays,
    ),
    "energy_digits": (
        energy,
        change(energy_configs.PRESETS["small"], training={"steps": 3000}),
        energy_digits,
    ),
}


if __name__ == "__main__":
    main(*sys.argv[1:])
