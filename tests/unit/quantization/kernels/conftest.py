"""The backends of kernels that this machine runs."""

import pytest

from cpt_deploy.quantization.kernels import Kernels, load_native, native_levels
from cpt_deploy.quantization.kernels.compile import levels


@pytest.fixture(params=list(levels()))
def native(request: pytest.FixtureRequest) -> Kernels:
    """The compiled kernels of one instruction set."""
    names = native_levels()
    if isinstance(names, str):
        pytest.skip(f"no compiled kernels: {names}")
    if request.param not in names:
        pytest.skip(f"this processor does not run {request.param}")
    kernels = load_native(request.param)
    assert not isinstance(kernels, str), kernels
    return kernels
