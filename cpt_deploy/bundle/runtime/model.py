"""Run a bundle's model in onnxruntime, trace its integers, and check it against the golden sample."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt

from cpt_deploy.bundle.golden import Golden, GoldenCheck, compare_golden
from cpt_deploy.bundle.runtime.sessions import open_session
from cpt_deploy.bundle.runtime.tensors import Arrays, checked_inputs
from cpt_deploy.errors import BundleError
from cpt_deploy.signature import BATCH, FreeSize, Signature, TensorSpec

DTYPES = {
    "tensor(float)": "float32", "tensor(double)": "float64", "tensor(float16)": "float16", "tensor(bool)": "bool",
    "tensor(int64)": "int64", "tensor(int32)": "int32", "tensor(int16)": "int16", "tensor(int8)": "int8",
    "tensor(uint64)": "uint64", "tensor(uint32)": "uint32", "tensor(uint16)": "uint16", "tensor(uint8)": "uint8",
    "tensor(string)": "object",
}  # fmt: skip
"""NumPy's names of onnxruntime's types."""


class OnnxRuntimeModel:
    """An exported model in onnxruntime. `run` may be called from several threads at once.

    Args:
        model: Path of an ONNX file, or its bytes.
        signature: Its signature; `None` is that of the file, which has no states: all inputs have to be given.
        threads: Number of threads per call; `None` is one per physical core.
        optimize: Whether onnxruntime may fuse the graph to integer operators, which makes it fast.
        provider: "cpu", "cuda", "tensorrt", or the name of one of onnxruntime's execution providers.
        rest_between_runs: Whether its threads stop at once after a call instead of busy-waiting for the next one, so
            that several models can be timed in alternation.

    Raises:
        BundleError: If onnxruntime cannot load the file, or its inputs and outputs are not those of the signature.
        UsageError: If the provider does not exist or `threads` is less than 1.
        MissingExtraError: If the installed onnxruntime lacks the provider or cannot start it.
    """

    def __init__(
        self,
        model: Path | bytes,
        signature: Signature | None = None,
        *,
        threads: int | None = 1,
        optimize: bool = True,
        provider: str = "cpu",
        rest_between_runs: bool = False,
    ) -> None:
        where = "the given bytes" if isinstance(model, bytes) else str(model)
        self._session: Any = open_session(
            model,
            where=where,
            threads=threads,
            optimize=optimize,
            provider=provider,
            rest_between_runs=rest_between_runs,
        )
        names = [output.name for output in self._session.get_outputs()]
        found = _file_signature(self._session, names if signature is None else signature.names, where)
        self.signature: Signature = (
            _batched(found, where) if signature is None else _checked_signature(signature, found, where)
        )
        self.intermediate_names: tuple[str, ...] = tuple(
            output.name for output in self._session.get_outputs() if output.name not in self.signature.names
        )
        self._outputs = [tensor.name for tensor in self.signature.outputs]

    @property
    def providers(self) -> list[str]:
        """The execution providers in use, in order of priority."""
        providers: list[str] = self._session.get_providers()
        return providers

    def run(self, inputs: Arrays) -> dict[str, npt.NDArray[Any]]:
        """Compute the outputs of a batch by name.

        Args:
            inputs: Arrays (N, ...) by name; states that are missing are the initial ones, zeros.

        Raises:
            ValueError: If the names, a dtype or a shape are not those of the signature.
        """
        return self._run(self._outputs, inputs)

    def run_checked(self, inputs: Arrays) -> dict[str, npt.NDArray[Any]]:
        """Compute the outputs of a batch by name for all inputs, which fit the signature; see `checked_inputs`."""
        return dict(zip(self._outputs, self._session.run(self._outputs, inputs), strict=True))

    def trace(self, inputs: Arrays) -> dict[str, npt.NDArray[Any]]:
        """Compute a batch; return the outputs, and those of the file that are not in the signature, by name.

        Args:
            inputs: As for `run`.

        Raises:
            ValueError: If the names, a dtype or a shape are not those of the signature.
        """
        return self._run([*self._outputs, *self.intermediate_names], inputs)

    def reproduce_golden(self, golden: Golden) -> GoldenCheck:
        """Compute a golden sample and compare the outputs; see `GoldenCheck.reproduced`.

        Raises:
            BundleError: If the sample belongs to another model.
        """
        try:
            return compare_golden(golden, self.run(golden.inputs))
        except ValueError as error:
            raise BundleError(f"Expected the golden sample to fit the model, but got: {error}") from error

    def _run(self, names: Sequence[str], inputs: Arrays) -> dict[str, npt.NDArray[Any]]:
        values = self._session.run(names, checked_inputs(self.signature, inputs))
        return dict(zip(names, values, strict=True))


def _file_signature(session: Any, outputs: Collection[str], where: str) -> Signature:
    """Return the signature of an ONNX file; free dimensions have its names, or those of their places.

    Args:
        session: The session.
        outputs: The outputs to include.
        where: Name of the file in error messages.

    Raises:
        BundleError: If a tensor has a type that no signature has, or no batch dimension first.
    """
    taken = [_spec(tensor, where) for tensor in session.get_inputs()]
    made = [_spec(tensor, where) for tensor in session.get_outputs() if tensor.name in outputs]
    names = {size for tensor in taken for size in tensor.shape if isinstance(size, str)}
    return Signature(tuple(taken), tuple(made), (), {name: FreeSize(example=1, least=0) for name in sorted(names)})


def _spec(tensor: Any, where: str) -> TensorSpec:
    if tensor.type not in DTYPES:
        raise BundleError(f"Expected tensors of numbers, but {tensor.name} of {where} is {tensor.type}")
    sizes = (size or f"{tensor.name}_{place}" for place, size in enumerate(tensor.shape[1:], start=1))
    return TensorSpec(tensor.name, DTYPES[tensor.type], tuple(sizes), BATCH if tensor.shape else None)


def _batched(signature: Signature, where: str) -> Signature:
    """Return a signature if each of its tensors has a batch dimension.

    Raises:
        BundleError: If one has none.
    """
    for tensor in (*signature.inputs, *signature.outputs):
        if tensor.batch is None:
            raise BundleError(
                f"Expected tensors with a batch dimension, but {tensor.name} of {where} is one {tensor.dtype}"
            )
    return signature


def _checked_signature(signature: Signature, found: Signature, where: str) -> Signature:
    """Return a signature if a file has its inputs and outputs.

    Raises:
        BundleError: If it has others.
    """
    if all(
        {(tensor.name, tensor.dtype) for tensor in ours} == {(tensor.name, tensor.dtype) for tensor in theirs}
        for ours, theirs in ((signature.inputs, found.inputs), (signature.outputs, found.outputs))
    ):
        return signature
    raise BundleError(
        f"Expected a model from {_listed(signature.inputs)} to {_listed(signature.outputs)}, but {where} is from "
        f"{_listed(found.inputs)} to {_listed(found.outputs)}"
    )


def _listed(tensors: Sequence[TensorSpec]) -> str:
    return ", ".join(f"{tensor.name} ({tensor.dtype})" for tensor in tensors)
