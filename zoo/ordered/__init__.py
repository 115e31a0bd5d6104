"""ON-LSTM and cumax: ordered neurons (https://kexue.fm/archives/6621, arXiv 1810.09536)."""

from zoo.ordered.baselines import (
    balanced_tree,
    binarized_tree,
    left_branching_tree,
    random_tree,
    right_branching_tree,
)
from zoo.ordered.cell import Depths, MasterGates, OnLstmCarry, OnLstmParams
from zoo.ordered.gates import cumax, log_cumax
from zoo.ordered.language_model import LanguageModelOutput, OnLstmLanguageModel
from zoo.ordered.nt_asgd import NtAsgdState, nt_asgd, nt_asgd_parameters, observe_validation
from zoo.ordered.ordered_lstm import (
    OnLstm,
    OnLstmOutput,
    initial_carry,
    master_gates,
    on_lstm,
    on_lstm_step,
)
from zoo.ordered.original import load_original, original_parameter_count
from zoo.ordered.pictures import draw_gates, draw_trees
from zoo.ordered.regularization import activation_penalty, dropout, weight_drop
from zoo.ordered.scores import (
    BracketScores,
    CorpusScores,
    bracket_scores,
    corpus_scores,
    label_recall,
    mean_word_depth,
    parsing_table,
)
from zoo.ordered.treebank import GoldTree, keep_words, parse_brackets, read_treebank
from zoo.ordered.trees import (
    Tree,
    depths_to_tree,
    prune_tree,
    spans_to_tree,
    split_tree,
    tree_spans,
    tree_words,
)

__all__ = [
    "BracketScores",
    "CorpusScores",
    "Depths",
    "GoldTree",
    "LanguageModelOutput",
    "MasterGates",
    "NtAsgdState",
    "OnLstm",
    "OnLstmCarry",
    "OnLstmLanguageModel",
    "OnLstmOutput",
    "OnLstmParams",
    "Tree",
    "activation_penalty",
    "balanced_tree",
    "binarized_tree",
    "bracket_scores",
    "corpus_scores",
    "cumax",
    "depths_to_tree",
    "draw_gates",
    "draw_trees",
    "dropout",
    "initial_carry",
    "keep_words",
    "label_recall",
    "left_branching_tree",
    "load_original",
    "log_cumax",
    "master_gates",
    "mean_word_depth",
    "nt_asgd",
    "nt_asgd_parameters",
    "observe_validation",
    "on_lstm",
    "on_lstm_step",
    "original_parameter_count",
    "parse_brackets",
    "parsing_table",
    "prune_tree",
    "random_tree",
    "read_treebank",
    "right_branching_tree",
    "spans_to_tree",
    "split_tree",
    "tree_spans",
    "tree_words",
    "weight_drop",
]
