"""What a bundle's signature says of a model: metadata of the protocol, Triton's configuration, and examples."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cpt_deploy.bundle import Bundle
from cpt_deploy.bundle.bare import STRING
from cpt_deploy.bundle.layout import LABELS_FILE
from cpt_deploy.bundle.runtime.providers import CPU, provider_name
from cpt_deploy.signature import BATCH, Signature, TensorSpec, size_at
from cpt_serving.oip.datatypes import datatype_of
from cpt_serving.oip.schemas import ModelMetadata
from cpt_serving.oip.tensors import Array, described
from cpt_serving.settings import ServeSettings

NO_EVIDENCE = "none: an ONNX file that is served as it is"
"""Evidence of a bare file."""

_TRITON = {STRING: "STRING"}
"""Triton's names of types in configurations, where they are not the protocol's."""

_MOST_VALUES = 1024
"""Maximum values of an example that is shown."""


def model_metadata(bundle: Bundle, versions: Sequence[str] = ()) -> ModelMetadata:
    """Return the protocol's metadata of a model.

    Args:
        bundle: Its bundle.
        versions: Versions that are served.
    """
    signature = bundle.signature
    return ModelMetadata(
        name=bundle.name,
        versions=list(versions),
        platform="onnx_onnxv1",
        inputs=[described(spec) for spec in signature.inputs],
        outputs=[described(spec) for spec in signature.outputs],
        parameters={"evidence": NO_EVIDENCE} if bundle.bare else None,
    )


def model_config(bundle: Bundle, settings: ServeSettings) -> dict[str, Any]:
    """Return the configuration of a model in Triton's form, whose shapes are without the batch dimension."""
    joined = bundle.signature.joins_rows
    evidence = {"evidence": {"string_value": NO_EVIDENCE}} if bundle.bare else {}
    labels = {"label_filename": LABELS_FILE} if LABELS_FILE in bundle.digests else {}

    def configured(specs: Sequence[TensorSpec], **further: str) -> list[dict[str, Any]]:
        return [
            {"name": spec.name, "data_type": f"TYPE_{_TRITON.get(spec.dtype) or datatype_of(spec.dtype)}"}
            | {"dims": described(spec).shape[joined:]}
            | further
            for spec in specs
        ]

    group = {
        "name": bundle.name,
        "kind": "KIND_CPU" if provider_name(settings.provider) == CPU else "KIND_GPU",
        "count": settings.inferences_at_once,
    }
    return {
        "name": bundle.name,
        "platform": "onnxruntime_onnx",
        "backend": "onnxruntime",
        "max_batch_size": settings.max_rows if joined else 0,
        "input": configured(bundle.signature.inputs),
        "output": configured(bundle.signature.outputs, **labels),
        "instance_group": [group],
        "default_model_filename": bundle.onnx_path.name,
        "parameters": {
            "sha256": {"string_value": bundle.sha256},
            "version": {"string_value": bundle.version},
            **evidence,
        },
    }


def example_inputs(signature: Signature) -> dict[str, Array] | None:
    """Return a row of zeros of each input, without states; None if they would be too long to show.

    They reveal nothing of a bundle's content.
    """
    sizes, states = {**signature.sizes(), BATCH: 1}, {before for before, _ in signature.states}
    shapes = {
        spec.name: tuple(sizes[size] if size in sizes else size_at(size, sizes) for size in spec.whole_shape)
        for spec in signature.inputs
        if spec.name not in states
    }
    if sum(map(math.prod, shapes.values())) > _MOST_VALUES:
        return None
    return {
        spec.name: np.full(shapes[spec.name], "", object)
        if spec.dtype == STRING
        else np.zeros(shapes[spec.name], spec.dtype)
        for spec in signature.inputs
        if spec.name in shapes
    }


def infer_example(signature: Signature) -> dict[str, Any] | None:
    """Return an example request of the protocol that works unchanged; None if it would be too long to show."""
    inputs = example_inputs(signature)
    if inputs is None:
        return None
    tensors = [
        {"name": name, "shape": list(values.shape), "datatype": datatype_of(values.dtype),
         "data": values.ravel().tolist()}
        for name, values in inputs.items()
    ]  # fmt: skip
    return {"id": "1", "inputs": tensors}


def row_examples(signature: Signature) -> dict[str, Any]:
    """Return bodies for `/predict` by title, of a row of zeros; none if it would be too long to show."""
    rows = {name: values.tolist() for name, values in (example_inputs(signature) or {}).items()}
    by_row = [{name: row[0] for name, row in rows.items()}]
    return {"rows": {"inputs": rows}, "row by row": {"instances": by_row}} if rows else {}


def first_row(bundle: Bundle) -> Mapping[str, Any] | None:
    """Return the first golden row as `/predict` takes it; None if it would be too long to show."""
    states = {before for before, _ in bundle.signature.states}
    rows = {name: values[:1] for name, values in bundle.golden.inputs.items() if name not in states}
    if sum(values.size for values in rows.values()) > _MOST_VALUES:
        return None
    return {name: values.tolist() for name, values in rows.items()}
