"""An ONNX file without a bundle: its signature as it is in the file, and whether its rows are independent.

Needs neither `onnx` nor PyTorch.
"""

import hashlib
import logging
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cpt_deploy.bundle.bundle import Bundle
from cpt_deploy.bundle.golden import Golden
from cpt_deploy.bundle.layout import ONNX_FILE
from cpt_deploy.bundle.processors.tensor_processor import TensorProcessor
from cpt_deploy.bundle.runtime.model import DTYPES
from cpt_deploy.bundle.runtime.sessions import open_session
from cpt_deploy.errors import BundleError
from cpt_deploy.signature import BATCH, FreeSize, Signature, TensorSpec

logger = logging.getLogger(__name__)

STRING = "object"
"""NumPy's dtype of strings in onnxruntime."""
_SIZES = (16, 1, 8, 32, 64, 128, 224)
"""Sizes of free dimensions to try, until onnxruntime runs the file."""
_MOST_VALUES = 4_000_000
"""Maximum values of all inputs together at a size that is tried, 16 MB as float32: several free dimensions multiply."""
_INDEPENDENT = 1e-3
"""Allowed difference of a row's outputs if it is in a batch with others, as a share of the largest output."""
_NO_GOLDEN = Golden({"none": np.zeros(1)}, {"none": np.zeros(1)})
"""In place of a golden sample, which a bare file does not have; whatever reads one asks for `bare` first."""
_SPREAD = (1.0, 4.0, 0.25)
"""Factors of the rows that are tried, so that a range that is computed over the batch shows."""


def bundle_of_file(path: Path, name: str | None = None, version: str | None = None) -> Bundle:
    """Return a bundle around a bare file, which has no evidence, no golden sample and no checksums of its own.

    Args:
        path: The ONNX file.
        name: Name of the model; `None` is that of the file.
        version: Version of the model; `None` is "1".

    Raises:
        BundleError: If onnxruntime cannot load it, or an input or output is no tensor of a type that a client can send.
    """
    session = open_session(path)
    inputs, outputs = (
        tuple(_spec(tensor, path) for tensor in tensors) for tensors in (session.get_inputs(), session.get_outputs())
    )
    signature = _signature(inputs, outputs)
    if rows_are_independent(session, signature):
        signature = _signature(
            *(tuple(TensorSpec(t.name, t.dtype, t.shape) for t in tensors) for tensors in (inputs, outputs))
        )
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Bundle(
        path=path,
        name=name or file_name(path),
        version=version or "1",
        task="tensors",
        config={"cpt": {}},
        signature=signature,
        processor=TensorProcessor(),
        golden=_NO_GOLDEN,
        quantization={},
        validation=None,
        digests={ONNX_FILE: digest},
        bare=True,
    )


def file_name(path: Path) -> str:
    """Return the name of a model that a file has no name for, as part of URLs."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip("-._") or "model"


def rows_are_independent(session: Any, signature: Signature) -> bool:
    """Return whether first dimensions are free, and a row's outputs are the same alone as in a batch: it is tried."""
    tensors = (*signature.inputs, *signature.outputs)
    # Inputs that name their first dimensions differently may be broadcast.
    if len({tensor.batch for tensor in signature.inputs}) != 1 or not all(isinstance(t.batch, str) for t in tensors):
        return False
    names, reason = [tensor.name for tensor in signature.outputs], ""
    for seed, size in enumerate(_SIZES):
        # The size 1 adds nothing to the sizes that the file has itself.
        if size > 1 and _values(signature, len(_SPREAD), size) > _MOST_VALUES:
            continue
        try:
            inputs = dict(_random_inputs(signature, len(_SPREAD), size, seed))
            together = session.run(names, inputs)
            alone = [
                session.run(names, {name: array[row : row + 1] for name, array in inputs.items()})
                for row in range(len(_SPREAD))
            ]
        except Exception as error:  # onnxruntime's exceptions have no common base class; or memory is short
            reason = str(error).strip().partition("\n")[0]
            continue
        return all(
            len(values) == len(_SPREAD) and all(_alike(each[i], values[n : n + 1]) for n, each in enumerate(alone))
            for i, values in enumerate(together)
        )
    logger.warning("rows of several requests are not joined: the file runs with none of the sizes tried: %s", reason)
    return False


def _random_inputs(signature: Signature, rows: int, size: int, seed: int) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    random = np.random.default_rng(seed)
    for tensor in signature.inputs:
        yield tensor.name, random_values(random, tensor.dtype, _shape(tensor, rows, size))


def _values(signature: Signature, rows: int, size: int) -> int:
    return sum(math.prod(_shape(tensor, rows, size)) for tensor in signature.inputs)


def _shape(tensor: TensorSpec, rows: int, size: int) -> tuple[int, ...]:
    return (rows, *(known if isinstance(known, int) else size for known in tensor.shape))


def random_values(random: np.random.Generator, dtype: str, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """Return random values of any dtype; integers are 0 and 1, which most tables have; real rows differ in size."""
    kind = np.dtype(dtype).kind
    if kind == "O":
        return random.choice(np.array(["a", "b"], object), shape)
    if kind in "iub":
        return random.integers(0, 2, shape).astype(dtype)
    factors = np.resize(_SPREAD, shape[:1]).reshape(-1, *[1] * (len(shape) - 1)) if shape else 1.0
    return (random.standard_normal(shape) * factors).astype(dtype)


def _alike(wanted: npt.NDArray[Any], got: npt.NDArray[Any]) -> bool:
    if wanted.shape != got.shape or wanted.dtype.kind in "OUb":
        return bool(np.array_equal(wanted, got))
    largest = float(np.nanmax(np.abs(wanted), initial=0)) or 1.0
    return np.allclose(got, wanted, rtol=_INDEPENDENT, atol=_INDEPENDENT * largest, equal_nan=True)


def _signature(inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> Signature:
    free = {size for tensor in inputs for size in tensor.whole_shape if isinstance(size, str)} - {BATCH}
    return Signature(inputs, outputs, (), {name: FreeSize(example=1, least=0) for name in sorted(free)})


def _spec(tensor: Any, path: Path) -> TensorSpec:
    dtype = DTYPES.get(tensor.type)
    if dtype is None:
        raise BundleError(
            f"Expected tensors of numbers, booleans or strings, but {tensor.name} of {path} is {tensor.type}",
            hint="scikit-learn's converters write no maps with zipmap=False" if "map(" in tensor.type else None,
        )
    sizes = [size if size not in (None, "") else f"{tensor.name}_{place}" for place, size in enumerate(tensor.shape)]
    # The name of the batch dimension is reserved for rows that are known to be independent.
    first = f"{sizes[0]}_0" if sizes and sizes[0] == BATCH else (sizes or [None])[0]
    return TensorSpec(tensor.name, dtype, tuple(sizes[1:]), first)
