"""Whether operations are recorded now, to be repeated for steps of other bits."""

import torch


def is_recorded(device: torch.device) -> bool:
    """Return whether torch compiles a graph now, or a CUDA graph is captured on the device."""
    return torch.compiler.is_compiling() or (device.type == "cuda" and torch.cuda.is_current_stream_capturing())
