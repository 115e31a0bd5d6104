"""Logical inference: an ON-LSTM against a plain LSTM of equal size, by number of operators."""

from experiments import command_line
from experiments.on_lstm_logic.config import PRESETS
from experiments.on_lstm_logic.train import run

if __name__ == "__main__":
    command_line.main(run, PRESETS, __doc__)
