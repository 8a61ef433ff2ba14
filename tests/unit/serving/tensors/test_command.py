"""`cpt predict --inputs` and `cpt serve` for models of tensors."""

import json

import numpy as np
import pytest

from cpt_cli.main import main
from cpt_deploy.errors import UsageError

ROWS = {"measures": [[3.5, 1, 2], [0.5, 7, -2]], "district": [[2], [1]]}


def run(capsys, *words):
    """Run a command line; return its exit code, what it printed on stdout, and the lines on stderr."""
    code = main([str(word) for word in words])
    printed = capsys.readouterr()
    return code, printed.out, printed.err.splitlines()


@pytest.fixture
def expected(priced):
    prices = priced({"measures": np.array(ROWS["measures"], np.float32), "district": np.array(ROWS["district"])})
    return [{"price": pytest.approx(float(price), abs=1e-4)} for price in prices["price"][:, 0]]


@pytest.fixture
def files(tmp_path):
    np.savez(tmp_path / "rows.npz", measures=np.array(ROWS["measures"], np.float32), district=ROWS["district"])
    (tmp_path / "rows.json").write_text(json.dumps(ROWS))
    (tmp_path / "request.json").write_text(json.dumps({"inputs": ROWS}))
    instances = [dict(zip(ROWS, row, strict=True)) for row in zip(*ROWS.values(), strict=True)]
    (tmp_path / "instances.json").write_text(json.dumps(instances))
    return tmp_path


@pytest.mark.parametrize("name", ["rows.npz", "rows.json", "request.json", "instances.json"])
def test_rows_are_predicted_by_output_name(capsys, price_bundle, files, expected, name):
    code, out, err = run(capsys, "predict", price_bundle.path, "--inputs", files / name, "--json")
    assert (code, err) == (0, [])
    assert json.loads(out)["predictions"] == expected
    _, out, _ = run(capsys, "predict", price_bundle.path, "--inputs", files / name)
    assert 0 < out.index("price") < out.index("32.25") < out.index("3.75")


def test_a_server_answers_the_same_in_requests_of_a_few_rows(
    capsys, price_bundle, files, expected, serve_here, tmp_path
):
    many = {name: rows * 50 for name, rows in ROWS.items()}
    (tmp_path / "many.json").write_text(json.dumps(many))
    with serve_here(price_bundle.path, max_rows=40) as url:
        code, out, err = run(capsys, "predict", "--url", url, "--inputs", files / "rows.npz", "--json")
        assert (code, err, json.loads(out)["predictions"]) == (0, [], expected)
        code, out, _ = run(
            capsys, "predict", price_bundle.path, "--url", url, "--inputs", tmp_path / "many.json", "--json"
        )
        assert json.loads(out)["predictions"] == expected * 50
        code, _, err = run(capsys, "predict", "--url", url, "--inputs", files / "missing.csv")
        assert (code, err[0].startswith("error: Expected rows in")) == (5, True)


def test_a_table_has_the_names_of_features_or_none(capsys, make_series_bundle, tmp_path):
    from cpt_cli.prediction import read_rows

    named = tmp_path / "named.csv"
    named.write_text("\ufeffarea,age,rooms\n3.5,1,2\n0.5,7,-2\n", encoding="utf-8")
    assert read_rows(named) == {
        "instances": [{"area": 3.5, "age": 1, "rooms": 2}, {"area": 0.5, "age": 7, "rooms": -2}]
    }
    numbers = tmp_path / "numbers.csv"
    numbers.write_text("3.5,1,2\n0.5,7,-2\n")
    assert read_rows(numbers) == {"instances": [[3.5, 1, 2], [0.5, 7, -2]]}


def test_calls_of_unequal_numbers_are_refused():
    from cpt_cli.prediction import Predictor, predict_rows

    predictor = Predictor(lambda path: None, lambda body: [], ranks={"x": 1, "y": 1})
    with pytest.raises(UsageError, match="equally many calls, but got 3 of x, 2 of y"):
        predict_rows(predictor, {"inputs": {"x": [[1]] * 3, "y": [[1]] * 2}})


@pytest.mark.parametrize(
    ("name", "content", "code", "said"),
    [
        ("rows.txt", "1", 2, "Expected a file .npz, .json, .csv"),
        ("rows.json", "{", 5, "Expected rows in"),
        ("rows.json", "[]", 5, "Expected lists of rows in"),
        ("rows.json", '{"measures": [[1, 2, 3]]}', 2, "Expected each of the inputs ['measures', 'district'] once"),
        ("rows.json", '{"measures": [[1, 2, 3]], "district": [[7]]}', 2, "out of data bounds"),
        ("rows.npz", "no archive", 5, "Expected rows in"),
        ("rows.json", "[" * 100_000, 5, "Expected rows in"),
        ("rows.csv", "area,age,rooms\n1,2," + "3" * 200_000, 5, "Expected rows in"),
        ("rows.csv", "area,age\n1,much\n", 5, "Expected rows in"),
    ],
)
def test_what_is_no_rows_is_refused(capsys, price_bundle, tmp_path, name, content, code, said):
    (tmp_path / name).write_text(content)
    found, _, err = run(capsys, "predict", price_bundle.path, "--inputs", tmp_path / name)
    assert (found, said in err[0]) == (code, True), err


def test_images_and_rows_exclude_each_other(capsys, price_bundle, files, png):
    (files / "red.png").write_bytes(png())
    both = (price_bundle.path, files / "red.png", "--inputs", files / "rows.json")
    assert run(capsys, "predict", *both)[0] == 2
    assert run(capsys, "predict", "--inputs", files / "rows.json")[0] == 2
    code, _, err = run(capsys, "predict", price_bundle.path, files / "red.png")
    assert (code, "Expected JSON with rows of ['measures', 'district']" in err[0]) == (2, True), err


def test_serve_says_how_to_ask_a_model_of_no_known_task(capsys, price_bundle, monkeypatch):
    monkeypatch.setattr("cpt_serving.server.run", lambda _settings, on_listening: on_listening("http://127.0.0.1:1"))
    code, out, _ = run(capsys, "serve", price_bundle.path)
    assert code == 0
    assert "http://127.0.0.1:1/predict" in " ".join(out.split())
