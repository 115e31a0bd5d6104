"""What the settings do: the same documents, one change at a time, and three seeds.

    python -m experiments.jose.study --preset 20news --training.passes 3

Every row is one training, scored as in the experiment. Finished rows are in ``study.jsonl`` of the
workdir: the same command continues with the rest.
"""

import dataclasses
import json
import time
from typing import Any

from zoo._files import replace_file
from zoo.data.fingerprint import fingerprint
from zoo.training import open_workdir, results_table

from .. import command_line
from ..command_line import MAY_CHANGE
from ..running import open_mesh, read_records
from .config import PRESETS, Config
from .documents import read_documents
from .train import build, score

# Name -> fields that differ from the config.
CHANGES: dict[str, dict[str, Any]] = {
    "as configured": {},
    "joint hinge": {"model.objective": "joint"},
    # A document is in 11 times as many triples of it.
    "joint hinge, rate 0.01": {"model.objective": "joint", "training.learning_rate": 0.01},
    "joint hinge, rate 0.004": {"model.objective": "joint", "training.learning_rate": 0.004},
    "5 negatives": {"model.negatives": 5},
    "200 dimensions": {"model.dimension": 200},
    "margin 0.3": {"model.margin": 0.3},
    "seed 1": {"training.seed": 1},
    "seed 2": {"training.seed": 2},
    "50 dimensions": {"model.dimension": 50},
    "margin 0.05": {"model.margin": 0.05},
    "documents shuffled": {"training.shuffle": True},
}


def run(config: Config) -> None:
    """Trains and scores every change that has no row yet, then shows all."""
    mesh = open_mesh(config)
    documents = read_documents(config.data.uri)
    if documents.labels is None:
        raise ValueError(
            f"data.uri: the study needs classes of documents, {config.data.uri} has none"
        )
    workdir = open_workdir(f"{config.workdir}_study", config, ignore=MAY_CHANGE)
    path = workdir / "study.jsonl"
    rows, identity = read_records(path), fingerprint(documents)
    if any(row.get("documents") != identity for row in rows):
        raise ValueError(f"{path} has rows of other documents; use another --workdir")
    if rows:
        print(f"continues: {len(rows)} of {len(CHANGES)} rows are in {path}")
    for name, changes in CHANGES.items():
        if name in [row["change"] for row in rows]:
            continue
        trainer = build(changed(config, changes), mesh, documents)
        begin = time.perf_counter()
        vectors = trainer.fit().documents
        seconds = time.perf_counter() - begin
        found = score(vectors, documents, config)
        rows.append(
            {
                "change": name,
                "documents": identity,
                **{f"kNN {kind}": value for kind, value in found.get("knn", {}).items()},
                **{key: found["k_means"][key][0] for key in found["k_means"]},
                "seconds": seconds,
            }
        )
        replace_file(path, "".join(json.dumps(row) + "\n" for row in rows))
        print(rows[-1], flush=True)
    shown = [{name: row[name] for name in row if name != "documents"} for row in rows]
    results_table(shown, title=f"{config.data.uri}, {config.training.passes} passes")
    print("written:", path)


def changed(config: Config, changes: dict[str, Any]) -> Config:
    """The config with some fields replaced, each named ``section.field``."""
    for name, value in changes.items():
        section, field = name.split(".")
        part = dataclasses.replace(getattr(config, section), **{field: value})
        config = dataclasses.replace(config, **{section: part})
    return config


if __name__ == "__main__":
    from . import study  # under its own name, by which the folder is called

    command_line.main(study.run, PRESETS, __doc__)
