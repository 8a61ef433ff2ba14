"""What the README and the pages show is what the benchmarks wrote."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TABLES = [
    (page, name)
    for page in PAGES
    for name in re.findall(r"<!-- results/(\w+)\.md -->", page.read_text(encoding="utf-8"))
]


@pytest.mark.parametrize(("page", "name"), TABLES, ids=[f"{page.stem}-{name}" for page, name in TABLES])
def test_tables_in_the_pages_are_those_that_the_benchmarks_wrote(page: Path, name: str) -> None:
    text = page.read_text(encoding="utf-8")
    block = re.search(rf"<!-- results/{name}\.md -->\n(.*?)<!-- end -->", text, re.DOTALL)
    assert block is not None
    assert block.group(1) == (RESULTS / f"{name}.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_every_result_says_the_machine_and_the_versions(path: Path) -> None:
    machine = json.loads(path.read_text(encoding="utf-8"))["machine"]
    assert machine["cpu"]
    assert {"torch", "onnxruntime", "cpt-deploy"} <= set(machine["versions"])
