"""ON-LSTM and cumax: ordered neurons (https://kexue.fm/archives/6621, arXiv 1810.09536)."""

from zoo.ordered.evalb import evalb_scores
from zoo.ordered.gates import cumax, log_cumax
from zoo.ordered.language_model import OnLstmLanguageModel
from zoo.ordered.nt_asgd import nt_asgd
from zoo.ordered.ordered_lstm import (
    OnLstm,
    OnLstmCarry,
    OnLstmOutput,
    OnLstmParams,
    on_lstm,
    on_lstm_step,
)
from zoo.ordered.scores import bracket_scores
from zoo.ordered.treebank import read_treebank
from zoo.ordered.trees import depths_to_tree, tree_spans

__all__ = [
    "OnLstm",
    "OnLstmCarry",
    "OnLstmLanguageModel",
    "OnLstmOutput",
    "OnLstmParams",
    "bracket_scores",
    "cumax",
    "depths_to_tree",
    "evalb_scores",
    "log_cumax",
    "nt_asgd",
    "on_lstm",
    "on_lstm_step",
    "read_treebank",
    "tree_spans",
]
