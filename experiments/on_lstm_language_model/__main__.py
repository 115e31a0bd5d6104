"""Trains an ON-LSTM language model and shows the trees it found. Never told about grammar."""

from experiments import command_line
from experiments.on_lstm_language_model.config import PRESETS
from experiments.on_lstm_language_model.train import run

if __name__ == "__main__":
    command_line.main(run, PRESETS, __doc__)
