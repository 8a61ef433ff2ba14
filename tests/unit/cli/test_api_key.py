import hashlib
import json

import pytest

from cpt_cli.main import main


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run(capsys, *words):
    code = main(list(words))
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_a_key_is_shown_once_and_its_hash_is_stored(capsys, tmp_path):
    code, out, err = run(capsys, "api-key", "shop", "keys.txt")
    assert code == 0
    key = out.strip()
    assert key not in err
    stored = (tmp_path / "keys.txt").read_text()
    assert stored == f"shop:infer:{hashlib.sha256(key.encode()).hexdigest()}\n"
    assert "cpt serve BUNDLE --api-keys keys.txt" in err


def test_in_json_it_is_one_object(capsys):
    code, out, _ = run(capsys, "api-key", "release", "keys.txt", "--scope", "infer", "--scope", "admin", "--json")
    result = json.loads(out)
    assert (code, result["name"], result["scopes"]) == (0, "release", ["infer", "admin"])
    assert result["key"].startswith("cpt_")


def test_a_name_that_is_taken_and_an_unknown_scope_are_usage_errors(capsys):
    assert run(capsys, "api-key", "shop", "keys.txt", "-q")[0] == 0
    code, _, err = run(capsys, "api-key", "shop", "keys.txt")
    assert (code, "already" in err) == (2, True)
    code, _, err = run(capsys, "api-key", "other", "keys.txt", "--scope", "infr")
    assert (code, "infer, metrics, admin" in err) == (2, True)
