"""`/predict` and the page for models of tensors."""

import numpy as np
import pytest

BODY = {"inputs": {"measures": [[3.5, 1, 2], [0.5, 7, -2]], "district": [[2], [1]]}}


@pytest.fixture(scope="module")
def client(price_bundle, connect_to):
    with connect_to(price_bundle, max_rows=8) as connected:
        yield connected


def expected(priced):
    arrays = {
        "measures": np.array(BODY["inputs"]["measures"], np.float32),
        "district": np.array(BODY["inputs"]["district"]),
    }
    return [{"price": pytest.approx(float(price), abs=1e-4)} for price in priced(arrays)["price"][:, 0]]


@pytest.mark.parametrize(
    "body",
    [
        BODY,
        {"instances": [{"measures": [3.5, 1, 2], "district": [2]}, {"measures": [0.5, 7, -2], "district": [1]}]},
        {
            "inputs": {
                "measures": [{"rooms": 2, "area": 3.5, "age": 1}, {"area": 0.5, "age": 7, "rooms": -2}],
                "district": [[2], [1]],
            }
        },
    ],
    ids=["columns", "rows", "features by name"],
)
def test_rows_are_answered_by_output_name(client, priced, body):
    answer = client.post("/predict", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["predictions"] == expected(priced)
    assert answer.json()["batch_rows"] == 2


def test_the_rows_of_the_only_input_need_no_name(series_bundle, connect_to, summed):
    rows = [[[1, 2, 3, 4], [1, 1, 1, 1]]]
    sums = summed({"values": np.array(rows, np.float32)})
    with connect_to(series_bundle) as client:
        for key in ("inputs", "instances"):
            answer = client.post("/predict", json={key: rows}).json()
            assert answer["predictions"] == [{"sums": sums["sums"][0].tolist(), "last": sums["last"][0].tolist()}]


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({}, 400, 'Expected one of the keys "inputs" and "instances", but got []'),
        ({"inputs": {}}, 400, "Expected inputs by the names of the inputs, ['measures', 'district']"),
        ({"inputs": [[1, 2, 3]]}, 400, "by the names of the inputs"),
        ({"instances": []}, 400, "one or more"),
        ({"instances": [{"measures": [1, 2, 3]}, [1]]}, 400, "the same inputs"),
        ({"inputs": {**BODY["inputs"], "districts": 1}}, 400, "but got 'districts' (did you mean district?)"),
        ({"inputs": {**BODY["inputs"], "district": 1}}, 400, "Expected 'district' to be a list of rows, but got 1"),
        ({"inputs": {**BODY["inputs"], "district": [[1]]}}, 400, "district"),
        ({"inputs": {**BODY["inputs"], "district": [[1], [2, 3]]}}, 400, "rectangular"),
        ({"inputs": {**BODY["inputs"], "district": [[True], [False]]}}, 400, "an array of numbers, but got True"),
        ({"inputs": {**BODY["inputs"], "district": [[1], [4]]}}, 400, "out of data bounds"),
        ({"inputs": {**BODY["inputs"], "measures": [{"area": 1}] * 2}}, 400, "['area', 'age', 'rooms']"),
        ({"inputs": {"measures": [[1, 2, 3]] * 9, "district": [[1]] * 9}}, 413, "at most 8 rows"),
        ({"inputs": {"measures": [["a" * 1000] * 1000, [1, 2, 3]], "district": [[1], [1]]}}, 400, "rectangular"),
    ],
)  # fmt: skip
def test_other_json_is_refused(client, body, status, said):
    answer = client.post("/predict", json=body)
    assert (answer.status_code, said in answer.json()["error"]) == (status, True), answer.text


def test_a_file_is_refused(client, png):
    answer = client.post("/predict", files={"file": png()})
    assert (answer.status_code, "['measures', 'district']" in answer.json()["error"]) == (415, True), answer.text


def test_the_server_describes_what_it_takes(client):
    (served,) = client.get("/models").json()["models"]
    assert served["form"] == "tensors"
    evidence = client.get("/evidence").json()
    assert (evidence["task"], evidence["form"]) == ("tabular-regression", "tensors")
    assert evidence["facts"] == {"inputs": "measures, district", "outputs": "price"}
    rows = client.get("/samples").json()["rows"]
    assert rows == {"measures": [[1.0, 2.0, 3.0]], "district": [[0]]}
    assert client.get("/samples/0.png").status_code == 404
    paths = client.get("/openapi.json").json()["paths"]
    for example in paths["/predict"]["post"]["requestBody"]["content"]["application/json"]["examples"].values():
        assert client.post("/predict", json=example["value"]).json()["predictions"] == [{"price": 10.0}]
    example = paths["/v2/models/{model}/infer"]["post"]["requestBody"]["content"]["application/json"]["example"]
    assert client.post("/v2/models/prices/infer", json=example).json()["outputs"][0]["data"] == [10.0]


def test_the_page_predicts_rows(price_bundle, serve_here, browser):
    with serve_here(price_bundle.path) as url, browser.new_page() as page:
        page.goto(url)
        page.wait_for_selector("#rows-form:not([hidden])")
        page.wait_for_function("document.querySelector('#rows').value !== ''")
        assert not page.is_visible("#image-form")
        page.click("#rows-form button")
        page.wait_for_selector("#prediction:not([hidden])")
        assert page.inner_text("#outputs dt") == "price"
        assert float(page.inner_text("#outputs dd")) == pytest.approx(10.25)
        page.fill("#rows", '{"inputs": {"measures": [[1, 2, 3]]}}')
        page.click("#rows-form button")
        page.wait_for_selector("#problem .problem")
        assert "Expected each of the inputs ['measures', 'district'] once" in page.inner_text("#problem")
