"""Run a bundle's language model in onnxruntime: tokens and state in, logits and new state out."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cpt_deploy.bundle.language.golden import GoldenText, GoldenTextCheck, compare_golden_text
from cpt_deploy.bundle.language.manifest import LOGITS_NAME, TOKENS_NAME, LanguageManifest
from cpt_deploy.bundle.runtime.sessions import open_session
from cpt_deploy.errors import BundleError

State = Mapping[str, npt.NDArray[Any]]
"""The state tensors, by input name."""

_ONNX_TYPES = {
    "FP32": "tensor(float)", "UINT8": "tensor(uint8)", "INT8": "tensor(int8)", "INT32": "tensor(int32)",
    "INT64": "tensor(int64)",
}  # fmt: skip


class LanguageModel:
    """An exported language model in onnxruntime. `run` may be called from several threads at once.

    Args:
        model: Path of an ONNX file, or its bytes.
        manifest: Description of its inputs and outputs.
        threads: Number of threads per call; `None` is one per physical core.
        optimize: Whether onnxruntime may fuse the graph to integer operators.
        provider: "cpu", "cuda", or the name of one of onnxruntime's execution providers.

    Raises:
        BundleError: If onnxruntime cannot load it, or its inputs and outputs are not those of the manifest.
        UsageError: If the provider is not available here or `threads` is less than 1.
    """

    def __init__(
        self,
        model: Path | bytes,
        manifest: LanguageManifest,
        *,
        threads: int | None = 1,
        optimize: bool = True,
        provider: str = "cpu",
    ) -> None:
        self.manifest = manifest
        self._session = open_session(model, threads=threads, optimize=optimize, provider=provider)
        self._outputs = [LOGITS_NAME, *(state.output for state in manifest.states)]
        self._check_names("the given bytes" if isinstance(model, bytes) else str(model))

    def run(self, tokens: npt.NDArray[np.int64], state: State | None = None) -> tuple[npt.NDArray[np.float32], State]:
        """Read tokens and return the logits of the token that follows each of them.

        Args:
            tokens: int64 (N, T), each within the vocabulary.
            state: The state from the previous call; None at the beginning of a sequence.

        Returns:
            Logits, float32 (N, T, V), and the state for the next call.

        Raises:
            ValueError: If the tokens are invalid, or exceed the context together with the earlier ones.
        """
        if tokens.dtype != np.int64 or tokens.ndim != 2 or tokens.size == 0:
            raise ValueError(f"Expected tokens to be int64 (N, T), but got {tokens.dtype} {tokens.shape}")
        if tokens.min() < 0 or tokens.max() >= self.manifest.vocabulary:
            raise ValueError(
                f"Expected tokens in 0..{self.manifest.vocabulary - 1}, but got {tokens.min()}..{tokens.max()}"
            )
        before = self.manifest.initial_state(len(tokens)) if state is None else state
        context, total = self.manifest.context, self.manifest.past_of(before) + tokens.shape[1]
        if context is not None and total > context:
            raise ValueError(f"Expected at most {context} tokens, the model's context, but got {total}")
        logits, *after = self._session.run(self._outputs, {TOKENS_NAME: tokens, **before})
        return logits, {entry.input: value for entry, value in zip(self.manifest.states, after, strict=True)}

    def reproduce_golden(self, golden: GoldenText) -> GoldenTextCheck:
        """Compute a golden sample and compare the logits; see `GoldenTextCheck.within`.

        Raises:
            BundleError: If the sample belongs to another model.
        """
        try:
            return compare_golden_text(golden, self.run(golden.tokens)[0][:, -1])
        except ValueError as error:
            raise BundleError(f"Expected the golden sample to fit the model, but got: {error}") from error

    def _check_names(self, where: str) -> None:
        inputs = {tensor.name: tensor.type for tensor in self._session.get_inputs()}
        outputs = [tensor.name for tensor in self._session.get_outputs()]
        expected = {TOKENS_NAME: "tensor(int64)"}
        expected |= {state.input: _ONNX_TYPES[state.datatype] for state in self.manifest.states}
        if inputs != expected or not set(self._outputs) <= set(outputs):
            raise BundleError(
                f"Expected a model with the inputs {expected} and the outputs {self._outputs}, but {where} has "
                f"{inputs} and {outputs}"
            )
