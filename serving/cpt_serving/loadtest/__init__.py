"""Load on a server of this project or of the Open Inference Protocol: clients that ask again and again."""

from cpt_serving.loadtest.levels import fast_loop, run_levels
from cpt_serving.loadtest.payloads import prepare
from cpt_serving.loadtest.requests import PreparedRequest, prepare_infer, prepare_predict
from cpt_serving.loadtest.results import LevelResult, Recorder

__all__ = [
    "LevelResult",
    "PreparedRequest",
    "Recorder",
    "fast_loop",
    "prepare",
    "prepare_infer",
    "prepare_predict",
    "run_levels",
]
