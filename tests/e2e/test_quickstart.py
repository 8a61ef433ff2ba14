"""The quickstart, with fewer epochs than `make quickstart` has: each of its steps, and what they leave."""

import json

import pytest
import yaml

from cpt_cli.main import main
from cpt_deploy.errors import UsageError
from cpt_deploy.recipe import load_recipe
from cpt_deploy.workflows import quickstart


def test_all_steps_pass_and_an_image_is_answered(monkeypatch, capsys, tmp_path):
    recipe = tmp_path / "short.yaml"
    short = load_recipe(quickstart.PRESET, ["train.epochs=5", "precision.cycles=2"])
    recipe.write_text(yaml.safe_dump(short.model_dump(mode="json")))
    monkeypatch.setattr(quickstart, "PRESET", str(recipe))
    out = tmp_path / "out"
    assert main(["quickstart", "--out", str(out), "--json"]) == 0
    results = json.loads(capsys.readouterr().out)
    assert results["validation"]["mismatching_integers"] == 0 < results["validation"]["compared_integers"]
    assert results["prediction"]["shown"] == results["prediction"]["label"]
    assert list(results["seconds"]) == ["train", "export", "validate", "serve", "predict"]
    assert {path.name for path in out.iterdir()} == {"run", "digit.png", "server.log", "quickstart.json"}
    (out / "mine.txt").touch()
    with pytest.raises(UsageError, match=r"mine\.txt"):
        quickstart.make_room(out)
