"""A segmenter and a detector of torchvision, as torch.onnx writes them: no integer differs."""

from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[4] / "benchmarks"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("name", "exporter", "free"),
    [
        ("lraspp_mobilenet_v3_large", "dynamo", True),
        ("lraspp_mobilenet_v3_large", "legacy", True),
        ("ssdlite320_mobilenet_v3_large", "legacy", False),
        ("fasterrcnn_mobilenet_v3_large_320_fpn", "legacy", True),
    ],
)
def test_no_integer_of_a_file_of_torchvision_differs(
    name: str, exporter: str, free: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    from torchvision_files import converted, exported

    content, shape = exported(name, exporter, free=free, size=64)
    found = converted(content, shape)
    assert found["differing"] == 0
    assert found["integers"] > 10_000
    assert found["integer_share"] > 0.9
