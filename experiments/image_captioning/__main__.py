"""Trains a captioner whose every LayerNorm is conditional on a picture, and scores its captions."""

from experiments import command_line
from experiments.image_captioning.config import PRESETS
from experiments.image_captioning.train import run

if __name__ == "__main__":
    command_line.main(run, PRESETS, __doc__)
