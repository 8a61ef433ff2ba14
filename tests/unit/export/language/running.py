"""Run exported language models chunk by chunk."""

import numpy as np

from cpt_deploy.bundle import OnnxRuntimeModel, initial_states, next_states


class TextRuntime:
    """A language model in onnxruntime: tokens and a state to logits and the next state."""

    def __init__(self, content, signature, **options):
        self.signature, self.model = signature, OnnxRuntimeModel(content, signature, **options)

    def run(self, tokens, state=None):
        outputs = self.model.run({"input_ids": tokens, **(state or {})})
        return outputs["logits"], next_states(self.signature, outputs)


def empty_state(signature, rows):
    """The state before the first token."""
    return initial_states(signature, {"N": rows})


def joined(states):
    return {name: np.concatenate([state[name] for state in states]) for name in states[0]}


def rows_of(state, rows):
    return {name: np.ascontiguousarray(value[rows]) for name, value in state.items()}
