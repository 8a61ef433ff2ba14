import base64
import gzip
import io

import numpy as np
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from cpt_deploy.bundle import OnnxRuntimeModel, decode_image, top_k

PIXELS = np.zeros((8, 8, 3), np.uint8)
PIXELS[..., 1] = 255


def labels(response):
    assert response.status_code == 200, response.text
    return [image[0]["label"] for image in response.json()["predictions"]]


def error(response, status):
    body = response.json()
    assert (response.status_code, set(body)) == (status, {"error", "request_id"}), body
    assert body["request_id"] == response.headers["x-request-id"]
    return body["error"]


@pytest.mark.parametrize("field", ["file", "files", "image", "images", "data"])
def test_form_with_one_file(client, png, field):
    assert labels(client.post("/predict", files={field: ("a.png", png("blue"))})) == ["blue"]


def test_form_with_several_files_keeps_their_order(client, png):
    colours = ["blue", "red", "lime", "red"]
    files = [("files", (f"{index}.png", png(colour))) for index, colour in enumerate(colours)]
    assert labels(client.post("/predict", files=files)) == ["blue", "red", "green", "red"]


@pytest.mark.parametrize("kind", ["image/png", "image/jpeg", "application/octet-stream", "IMAGE/PNG; q=1", None])
def test_raw_image(client, png, kind):
    headers = {"content-type": kind} if kind else {}
    assert labels(client.post("/predict", content=png("lime", (20, 10)), headers=headers)) == ["green"]


def test_base64_in_json(client, png):
    text = base64.b64encode(png("red")).decode()
    assert labels(client.post("/predict", json={"image": text})) == ["red"]
    assert labels(client.post("/predict", json={"images": [text, f"data:image/png;base64,{text}"]})) == ["red", "red"]
    assert labels(client.post("/predict", json={"instances": [{"b64": text}]})) == ["red"]


def test_base64_variants(client, png):
    data = png("red", (37, 11))
    for text in (
        base64.urlsafe_b64encode(data).decode(),
        base64.b64encode(data).decode().rstrip("="),
        base64.encodebytes(data).decode(),
    ):
        assert labels(client.post("/predict", json={"image": text})) == ["red"]


def test_json_without_content_type(client, png):
    text = base64.b64encode(png("red")).decode()
    assert labels(client.post("/predict", content=orjson.dumps({"image": text}))) == ["red"]


def test_arrays_of_integers_are_pixels(client):
    assert labels(client.post("/predict", json={"instances": [PIXELS.tolist()]})) == ["green"]
    wide = np.repeat(PIXELS, 3, axis=1)
    assert labels(client.post("/predict", json={"instances": [wide.tolist(), PIXELS.tolist()]})) == ["green", "green"]


def test_arrays_with_fractions_are_normalised_inputs(client, shared_bundle):
    row = shared_bundle.processor.preprocessing.apply(PIXELS)
    assert labels(client.post("/predict", json={"instances": [row.tolist()]})) == ["green"]


def test_kind_decides_where_integers_are_normalised_inputs(client):
    row = np.zeros((3, 8, 8), int)
    row[2] = 1
    assert labels(client.post("/predict", json={"instances": [row.tolist()], "kind": "normalized"})) == ["blue"]
    message = error(client.post("/predict", json={"instances": [row.tolist()]}), 400)
    assert "arrays of integers only are taken as pixels" in message


def test_answer_names_the_model_and_says_where_time_went(client, png):
    answer = client.post("/predict?top_k=2", files={"file": png("red")}).json()
    assert (answer["model"], answer["version"]) == ("colours", "1")
    assert [set(entry) for entry in answer["predictions"][0]] == [{"label", "index", "probability"}] * 2
    assert set(answer["timings"]) == {"preprocess_ms", "queue_ms", "inference_ms", "total_ms"}
    assert all(value >= 0 for value in answer["timings"].values())


@pytest.mark.parametrize(("query", "count"), [("", 3), ("?top_k=1", 1), ("?top_k=3", 3), ("?top_k=999", 3)])
def test_top_k(client, png, query, count):
    (image,) = client.post(f"/predict{query}", files={"file": png()}).json()["predictions"]
    assert len(image) == count
    assert image == sorted(image, key=lambda entry: -entry["probability"])


@pytest.mark.parametrize("value", ["0", "-1", "many", "1.5", ""])
def test_unfit_top_k_is_422(client, png, value):
    assert "top_k" in error(client.post(f"/predict?top_k={value}", files={"file": png()}), 422)


def test_predictions_are_those_of_the_bundle(client, shared_bundle, png):
    data = png((200, 180, 190), (50, 31))
    inputs = {"image": shared_bundle.processor.preprocessing.apply(decode_image(data))[None]}
    (expected,) = top_k(OnnxRuntimeModel(shared_bundle.onnx_path).run(inputs)["logits"], ("red", "green", "blue"), 3)
    (image,) = client.post("/predict", content=data).json()["predictions"]
    assert [(e["label"], e["probability"]) for e in image] == [(e.label, e.probability) for e in expected]


def test_every_odd_image_gives_a_prediction_or_a_clean_error(client, odd_images):
    statuses = {}
    for path in sorted(odd_images.iterdir()):
        response = client.post("/predict", files={"file": (path.name, path.read_bytes())})
        statuses[path.name] = response.status_code
        if response.status_code != 200:
            assert response.status_code in {400, 413}, path.name
            message = error(response, response.status_code)
            assert path.name in message
            assert "Traceback" not in message
            assert "0x" not in message
    assert statuses["decompression_bomb.gif"] == 413
    for broken in ("truncated_jpeg.jpg", "truncated_image.png", "broken.png", "zero_width.gif", "SOURCES.md"):
        assert statuses[broken] == 400
    for fine in ("hopper.jpg", "pil_sample_cmyk.jpg", "16bit.cropped.tif", "transparent.gif", "invalid-exif.jpg"):
        assert statuses[fine] == 200


def test_upright_and_rotated_photographs_are_predicted_alike(client, odd_images):
    data = [("file", (odd_images / f"hopper_orientation_{turn}.jpg").read_bytes()) for turn in (2, 3, 5, 6, 8)]
    images = client.post("/predict", files=[(name, ("a.jpg", content)) for name, content in data]).json()["predictions"]
    probabilities = [[entry["probability"] for entry in sorted(image, key=lambda e: e["index"])] for image in images]
    np.testing.assert_allclose(probabilities, np.tile(np.mean(probabilities, axis=0), (5, 1)), atol=0.03)


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "video/mp4", "text/html"])
def test_other_content_types_are_415_with_what_to_send(client, kind):
    message = error(client.post("/predict", content=b"x", headers={"content-type": kind}), 415)
    assert repr(kind) in message
    assert "multipart/form-data" in message


def test_bodies_may_be_compressed(client, png):
    packed = gzip.compress(png("lime"))
    assert client.post("/predict", content=packed, headers={"content-encoding": "gzip"}).status_code == 200
    error(client.post("/predict", content=b"x", headers={"content-encoding": "gzip"}), 400)
    error(client.post("/predict", content=packed, headers={"content-encoding": "br"}), 415)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"{}",
        b'{"image": 3}',
        b'{"image": ""}',
        b'{"image": "!!!"}',
        b'{"image": "aGVsbG8="}',
        b'{"images": []}',
        b'{"images": "aGVsbG8="}',
        b'{"image": "aGVsbG8=", "images": []}',
        b'{"picture": "aGVsbG8="}',
        b'{"instances": [1]}',
        b'{"instances": [[1, 2], [3]]}',
        b'{"instances": [[[1, 2], [3]]]}',
        b'{"instances": [[["a"]]]}',
        b'{"instances": [[[true]]]}',
        b'{"instances": [[[null]]]}',
        b'{"instances": [[[256]]]}',
        b'{"instances": [[[-1]]]}',
        b'{"instances": [[[0.5]]], "kind": "pixels"}',
        b'{"instances": [[[0.5]]]}',
        b'{"instances": [[[1e300]]]}',
        b'{"instances": [[[99999999999999999999999999]]]}',
        b'{"instances": [[[]]]}',
        b'{"instances": [{"b64": "aGVsbG8=", "x": 1}]}',
        b'{"instances": [[[1]]], "kind": "other"}',
        b'{"instances": [[[1]]], "kind": []}',
        b'{"instances": ' + b"[" * 2000 + b"]" * 2000 + b"}",
        b'{"instances": ' + b"[" * 100 + b"1" + b"]" * 100 + b"}",
        b'{"image": "\xff"}',
    ],
    ids=lambda body: body[:40].decode("latin-1"),
)
def test_wrong_json_is_400_with_what_was_expected(client, body):
    message = error(client.post("/predict", content=body, headers={"content-type": "application/json"}), 400)
    assert message.startswith("Expected")
    assert len(message) < 600


def test_wrong_forms_are_400(client, png):
    assert "picture" in error(client.post("/predict", files={"picture": png()}), 400)
    assert "but got ['file']" in error(client.post("/predict", data={"file": "text"}, files={"file": png()}), 400)
    headers = {"content-type": "multipart/form-data; boundary=x"}
    error(client.post("/predict", content=b"--x\r\nbroken", headers=headers), 400)
    error(client.post("/predict", content=b"--x--\r\n", headers=headers), 400)
    error(client.post("/predict", content=b"x", headers={"content-type": "multipart/form-data"}), 400)


def test_names_of_files_that_are_no_text_are_shown(client):
    part = b'--x\r\nContent-Disposition: form-data; name="file"; filename="\\ud800"\r\n\r\nno image\r\n--x--\r\n'
    headers = {"content-type": "multipart/form-data; boundary=x; charset=unicode_escape"}
    assert r"(\ud800)" in error(client.post("/predict", content=part, headers=headers), 400)


def test_the_bad_one_of_several_images_is_named(client, png):
    files = [("files", ("good.png", png())), ("files", ("bad.png", b"no image"))]
    assert "image 2 of 2 (bad.png)" in error(client.post("/predict", files=files), 400)
    text = base64.b64encode(png()).decode()
    assert "images[1]" in error(client.post("/predict", json={"images": [text, "aGVsbG8="]}), 400)


def test_limits_are_413(shared_bundle, connect_to, png):
    limits = {"max_body_bytes": 20_000, "max_rows": 2, "max_pixels": 100, "max_request_pixels": 250}
    with connect_to(shared_bundle, **limits) as small:
        assert "20000 bytes" in error(small.post("/predict", content=b"x" * 20_001), 413)
        assert "20000 bytes" in error(small.post("/predict", content=iter([b"x" * 15_000] * 2)), 413)
        assert "at most 2 rows" in error(small.post("/predict", files=[("file", png())] * 3), 413)
        assert "at most 2 rows" in error(small.post("/predict", json={"images": ["aGVsbG8="] * 3}), 413)
        assert "11 x 10" in error(small.post("/predict", files={"file": png(size=(11, 10))}), 413)
        assert labels(small.post("/predict", files={"file": png(size=(10, 10))})) == ["red"]
        # 100 pixels are decoded, and 8 x 8 of them made.
        assert "250 pixels" in error(small.post("/predict", files=[("file", png(size=(10, 10)))] * 2), 413)
        # Without decoding only those count that are made: 8 x 32, as scaling keeps the proportions.
        wide = np.zeros((1, 4, 3), np.uint8).tolist()
        assert "250 pixels" in error(small.post("/predict", json={"instances": [wide]}), 413)


def test_a_decompression_bomb_of_few_bytes_is_413(client):
    file = io.BytesIO()
    Image.new("1", (9_000, 9_000)).save(file, "PNG")
    assert len(file.getvalue()) < 20_000
    assert "9000 x 9000" in error(client.post("/predict", content=file.getvalue()), 413)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    body=st.binary(max_size=60)
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(st.sampled_from(["image", "images", "instances", "b64", "kind"]), inner, max_size=3)
        ),
        max_leaves=12,
    ),
    kind=st.sampled_from(["application/json", "image/png", "multipart/form-data; boundary=a", ""]),
)
def test_nothing_that_a_client_sends_is_a_server_error(client, body, kind):
    import json

    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    response = client.post("/predict", content=content, headers={"content-type": kind} if kind else {})
    assert response.status_code in {200, 400, 413, 415}
    if response.status_code != 200:
        error(response, response.status_code)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(arrays.arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12), st.sampled_from([1, 3]))))
def test_pixels_and_files_of_the_same_image_agree(client, pixels):
    file = io.BytesIO()
    Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels).save(file, "PNG")
    by_file = client.post("/predict", content=file.getvalue()).json()["predictions"]
    by_array = client.post("/predict", json={"instances": [pixels.tolist()]}).json()["predictions"]
    assert by_file == by_array
