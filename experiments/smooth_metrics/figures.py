"""The picture: test F1 by batch size and objective, and the bias of F1 over batches."""

from typing import Any

import numpy as np

from ..pictures import new_figure

COLORS = ("tab:gray", "black", "tab:green", "tab:orange", "tab:blue")


def draw(records: list[dict[str, Any]], bias: list[dict[str, float]]) -> Any:
    """Two panels with batch sizes on a logarithmic axis; bars are standard errors over seeds."""
    figure = new_figure(10, 4)
    trained, measured = figure.subplots(1, 2)
    sizes = np.array([record["batch_size"] for record in records], float)
    names = list(records[0]["scores"])
    for number, (name, color) in enumerate(zip(names, COLORS, strict=True)):
        beside = sizes * 1.04 ** (number - (len(names) - 1) / 2)  # bars would hide each other
        for metric, style in (("f1", "o-"), ("tuned_f1", "o--")):
            values = np.array([record["scores"][name][metric] for record in records])
            errors = values.std(axis=1, ddof=1) / values.shape[1] ** 0.5
            label = name if metric == "f1" else None
            look = {"fmt": style, "color": color, "label": label, "capsize": 2}
            trained.errorbar(beside, values.mean(axis=1), errors, **look)
    trained.set(xlabel="batch size", ylabel="F1 of the test set", xscale="log")
    trained.set_xticks(sizes, [f"{size:.0f}" for size in sizes])
    trained.minorticks_off()
    trained.legend(fontsize="small")
    trained.set_title("trained on (dashes: threshold tuned)", loc="left", fontsize="medium")

    sizes = np.array([row["batch size"] for row in bias], float)
    for column, color in (("mean of batch F1", "tab:orange"), ("mean of streaming F1", "tab:blue")):
        values = [row[column] for row in bias]
        measured.plot(sizes, values, "o-", color=color, label=column)
    measured.axhline(bias[0]["F1 of all"], color="black", linestyle="--", label="F1 of all samples")
    measured.set(xlabel="batch size", ylabel="smooth F1", xscale="log", ylim=(0, None))
    measured.set_xticks(sizes, [f"{size:.0f}" for size in sizes])
    measured.minorticks_off()
    measured.legend(fontsize="small")
    measured.set_title("one fixed scorer", loc="left", fontsize="medium")
    return figure
