"""The processor of models that take their tensors as they are, for example the columns of a table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from cpt_deploy.bundle.processors.processor import CardText, ReadFile
from cpt_deploy.errors import BundleError, DataError
from cpt_deploy.signature import Signature, TensorSpec

_FEATURES, _UNITS = "features", "units"
_KINDS = {"f": ("iuf", "numbers"), "i": ("iu", "integers"), "u": ("iu", "integers"), "b": ("b", "booleans")}


@dataclass(frozen=True)
class TensorProcessor:
    """Named tensors as values of JSON, and outputs by name.

    Args:
        features: Names of the values along the last dimension of an input, by the input's name; its rows may then be
            given as objects `{"age": 3, …}`.
        units: Unit of an output, by the output's name.
    """

    features: Mapping[str, Sequence[str]] = field(default_factory=dict)
    units: Mapping[str, str] = field(default_factory=dict)

    def inputs(self, values: Mapping[str, Any], signature: Signature) -> dict[str, npt.NDArray[Any]]:
        """Return the inputs of a model, (N, ...) each, from values of JSON by input name.

        Args:
            values: Nested lists of numbers, (N, ...); for an input with features, a list of objects as well. States may
                be left out.
            signature: The model's signature.

        Raises:
            DataError: If a name is unknown or missing, or values do not have the type or the shape of the input.
        """
        states = {before for before, _ in signature.states}
        specs = {tensor.name: tensor for tensor in signature.inputs}
        if not values.keys() <= specs.keys() or not specs.keys() - states <= values.keys():
            wanted = ", ".join(name for name in specs if name not in states)
            raise DataError(f"Expected the inputs {wanted}, but got {', '.join(map(repr, values)) or 'none'}")
        arrays = {name: self._array(specs[name], value) for name, value in values.items()}
        rows = {len(array) for array in arrays.values()}
        if len(rows) != 1:
            raise DataError(
                "Expected inputs of equally many rows, but got "
                + ", ".join(f"{len(array)} of {name}" for name, array in arrays.items())
            )
        return arrays

    def answers(self, outputs: Mapping[str, npt.NDArray[Any]]) -> list[dict[str, Any]]:
        """Return the outputs of each row as values of JSON by output name; one number alone is no list."""
        rows = len(next(iter(outputs.values())))
        return [{name: _plain(array[row]) for name, array in outputs.items()} for row in range(rows)]

    def _array(self, tensor: TensorSpec, value: Any) -> npt.NDArray[Any]:
        named = self.features.get(tensor.name)
        if named is not None and isinstance(value, Sequence):
            value = [_ordered(tensor.name, row, named) if isinstance(row, Mapping) else row for row in value]
        try:
            array = np.asarray(value)
        except ValueError as error:
            raise DataError(f"Expected {tensor.name} as nested lists of equal lengths, but got: {error}") from error
        kinds, what = _KINDS[np.dtype(tensor.dtype).kind]
        fits = array.ndim == len(tensor.shape) + 1 and all(
            size == found or isinstance(size, str) for size, found in zip(tensor.shape, array.shape[1:], strict=True)
        )
        if array.dtype.kind not in kinds or not fits or array.size == 0:
            shape = ", ".join(map(str, ("N", *tensor.shape)))
            got = f"{array.dtype} {list(array.shape)}" if array.dtype.kind in "iufb" else "other values"
            raise DataError(f"Expected {tensor.name} as {what} of the shape ({shape}), but got {got}")
        return array.astype(tensor.dtype)

    @classmethod
    def read(cls, config: Mapping[str, Any], read_file: ReadFile) -> Self:
        """See `Processor`."""
        own = config["cpt"]
        try:
            features = {str(name): tuple(map(str, names)) for name, names in own[_FEATURES].items()}
            return cls(features, {str(name): str(unit) for name, unit in own[_UNITS].items()})
        except (KeyError, TypeError, AttributeError) as error:
            raise BundleError(f"Expected config.json to name features and units, but got: {error!r}") from error

    def files(self) -> dict[str, bytes]:
        """See `Processor`; it has no files of its own."""
        return {}

    def config(self) -> dict[str, Any]:
        """See `Processor`."""
        return {}

    def facts(self) -> dict[str, Any]:
        """See `Processor`."""
        return {_FEATURES: {name: list(names) for name, names in self.features.items()}, _UNITS: dict(self.units)}

    def check(self, signature: Signature) -> None:
        """See `Processor`."""
        inputs = {tensor.name: tensor for tensor in signature.inputs}
        for name, names in self.features.items():
            shape = inputs[name].shape if name in inputs else None
            if not shape or len(names) != shape[-1] or len(set(names)) != len(names):
                raise ValueError(
                    f"Expected a different feature for each value of an input, but got {len(names)} of {name}, "
                    f"{'which is no input' if shape is None else f'of the shape {shape}'}"
                )
        outputs = {tensor.name for tensor in signature.outputs}
        if not self.units.keys() <= outputs:
            raise ValueError(f"Expected units of {', '.join(sorted(outputs))}, but got {', '.join(self.units)}")

    def contradictions(self, config: Mapping[str, Any], read_file: ReadFile) -> list[str]:
        """See `Processor`; config.json is the only file."""
        return []

    def onnx_metadata(self) -> dict[str, str]:
        """See `Processor`."""
        return {}

    def card(self, signature: Signature) -> CardText:
        """See `Processor`."""
        rows = {f"features of {name}": ", ".join(names) for name, names in self.features.items()}
        return CardText(
            "A model of tensors",
            ("cpt serve .     # over HTTP: /v2/models/NAME/infer",),
            rows=rows | {f"unit of {name}": unit for name, unit in self.units.items()},
        )


def _plain(value: npt.NDArray[Any]) -> Any:
    return value.item() if value.size == 1 else value.tolist()


def _ordered(name: str, row: Mapping[str, Any], features: Sequence[str]) -> list[Any]:
    if row.keys() != {*features}:
        raise DataError(f"Expected rows of {name} with {', '.join(features)}, but got {', '.join(map(str, row))}")
    return [row[feature] for feature in features]
