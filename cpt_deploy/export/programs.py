"""Export the integer executor as a file that runs with PyTorch alone: TorchScript or a `torch.export` program.

Both hold the int8 weights and compute the same as `IntegerExecutor` on the CPU. PyTorch has deprecated `torch.jit`; its
warnings concern this module's choice, not the user's, and are suppressed.
"""

import io
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from cpt_deploy.integer.executor import IntegerExecutor
from cpt_deploy.integer.graph import IntegerGraph
from cpt_deploy.quantization.graph.signature import dims_of

Program = Callable[..., Any]
"""Function from inputs to outputs, on the CPU, as in a graph's signature: one tensor, or a tuple of several."""


def write_torchscript(graph: IntegerGraph) -> bytes:
    """Return the TorchScript file of a graph's executor; `torch.jit.load(file)(inputs)` runs it.

    Raises:
        RuntimeError: If PyTorch cannot trace the executor.
    """
    buffer = io.BytesIO()
    with _quiet():
        # traced without gradients, and not checked by PyTorch: the caller compares integers
        script = torch.jit.trace(  # type: ignore[no-untyped-call]
            IntegerExecutor(graph).eval(), _example(graph), check_trace=False
        )
        torch.jit.save(script, buffer)
    return _without_debug_records(buffer.getvalue())


def write_pt2(graph: IntegerGraph) -> bytes:
    """Return the `torch.export` program of a graph's executor; `torch.export.load(file).module()(inputs)` runs it.

    Raises:
        RuntimeError: If PyTorch cannot export the executor.
    """
    buffer = io.BytesIO()
    with _quiet():
        program = torch.export.export(
            IntegerExecutor(graph).eval(), _example(graph), dynamic_shapes=(dims_of(graph.signature),)
        )
        for module in program.graph_module.modules():
            for node in module.graph.nodes if isinstance(module, fx.GraphModule) else ():
                node.meta.pop("stack_trace", None)  # it has lines of this project's files
        torch.export.save(program, buffer)
    return buffer.getvalue()


WRITERS: dict[str, Callable[[IntegerGraph], bytes]] = {"torchscript": write_torchscript, "pt2": write_pt2}
"""Writer of each format, by name."""


def load_program(kind: str, source: Path | bytes) -> Program:
    """Load a file that one of `WRITERS` wrote.

    Args:
        kind: "torchscript" or "pt2".
        source: The file or its content. Load only files that you trust: PyTorch does not promise that reading a program
            runs no code of its author.

    Raises:
        RuntimeError: If PyTorch cannot read it.
    """
    file = io.BytesIO(source if isinstance(source, bytes) else source.read_bytes())
    if not zipfile.is_zipfile(file):
        raise RuntimeError("not an archive as PyTorch writes it")  # torch.export would log a traceback
    file.seek(0)
    with _quiet():
        module: Program = (
            torch.jit.load(file)  # type: ignore[no-untyped-call]
            if kind == "torchscript"
            else torch.export.load(file).module()
        )

    def run(*inputs: Tensor) -> Any:
        with torch.no_grad(), _quiet():
            return module(*inputs)

    return run


def _example(graph: IntegerGraph) -> tuple[Tensor, ...]:
    """Return a batch of two zeros, expanded from one number in memory, since a program stores its example."""
    shapes = graph.signature.input_shapes(graph.signature.sizes(1))
    kinds = (getattr(torch, tensor.dtype) for tensor in graph.signature.inputs)
    return tuple(torch.zeros(1, dtype=kind).expand(2, *shape) for kind, shape in zip(kinds, shapes, strict=True))


def _without_debug_records(archive: bytes) -> bytes:
    """Remove the records that map TorchScript to source lines, since they contain paths of this machine."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as full, zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as lean:
        for record in full.infolist():
            if not record.filename.endswith(".debug_pkl"):
                lean.writestr(zipfile.ZipInfo(record.filename), full.read(record))
    return buffer.getvalue()


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
