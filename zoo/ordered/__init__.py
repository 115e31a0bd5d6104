"""ON-LSTM and cumax: ordered neurons (https://kexue.fm/archives/6621, arXiv 1810.09536)."""

from zoo.ordered.cell import Depths, MasterGates, OnLstmCarry, OnLstmParams
from zoo.ordered.gates import cumax, log_cumax
from zoo.ordered.language_model import LanguageModelOutput, OnLstmLanguageModel, dropout
from zoo.ordered.ordered_lstm import (
    OnLstm,
    OnLstmOutput,
    initial_carry,
    master_gates,
    on_lstm,
    on_lstm_step,
)
from zoo.ordered.pictures import draw_gates, draw_trees
from zoo.ordered.trees import (
    BracketScores,
    Tree,
    bracket_scores,
    depths_to_tree,
    tree_spans,
    tree_words,
)

__all__ = [
    "BracketScores",
    "Depths",
    "LanguageModelOutput",
    "MasterGates",
    "OnLstm",
    "OnLstmCarry",
    "OnLstmLanguageModel",
    "OnLstmOutput",
    "OnLstmParams",
    "Tree",
    "bracket_scores",
    "cumax",
    "depths_to_tree",
    "draw_gates",
    "draw_trees",
    "dropout",
    "initial_carry",
    "log_cumax",
    "master_gates",
    "on_lstm",
    "on_lstm_step",
    "tree_spans",
    "tree_words",
]
