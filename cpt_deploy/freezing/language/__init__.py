"""Trained language models as integers, and their exact execution in NumPy."""

from cpt_deploy.freezing.language.lstm import IntegerLstm, LstmTrace, freeze_lstm
from cpt_deploy.freezing.language.parts import Grid, IntegerLinear, IntegerTable

__all__ = ["Grid", "IntegerLinear", "IntegerLstm", "IntegerTable", "LstmTrace", "freeze_lstm"]
