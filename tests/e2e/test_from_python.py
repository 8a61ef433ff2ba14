"""The programs of docs/how-to/from-python.md, as they stand there."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "from-python.md"


def test_the_programs_of_the_page_run_and_print_only_what_they_print(run_dir, workspace, monkeypatch, capsys, caplog):
    monkeypatch.chdir(workspace)
    programs = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    assert len(programs) == 2
    caplog.set_level("INFO")
    names = {}
    exec(programs[0], names)
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith(("passed ", "undecided "))] == lines[2:3]
    assert lines[1].startswith("True ")
    assert lines[-1] == "0 integers differ"
    assert len(lines) == 4 + len(names["evidence"].content["runtimes"])
    assert names["bundle"].path == Path("from-python")
    exec(programs[1], names)
    assert (workspace / "six" / "model.onnx").is_file()
    assert any("weights at 6 bits" in record.message for record in caplog.records)
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "")
