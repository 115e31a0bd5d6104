"""Trains a detector of a rare class on smooth metrics; measures the bias of F1 over batches."""

from experiments import command_line
from experiments.smooth_metrics.config import PRESETS
from experiments.smooth_metrics.train import run

if __name__ == "__main__":
    command_line.main(run, PRESETS, __doc__)
