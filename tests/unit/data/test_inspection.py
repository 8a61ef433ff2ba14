import json

import numpy as np
import pytest
from PIL import Image

from cpt_cli.main import main
from cpt_deploy.data import inspect_folder, inspect_images, load_images
from cpt_deploy.data.images import FileImages
from cpt_deploy.data.inspection import without_bad
from cpt_deploy.errors import DataError


def picture(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(value).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def photos(tmp_path):
    """Two classes, two splits, no fault."""
    root = tmp_path / "photos"
    values = iter(range(100))
    for split, count in (("train", 4), ("val", 2)):
        for name in ("cat", "dog"):
            for index in range(count):
                picture(root / split / name / f"{index}.png", next(values))
    return root


def test_hidden_files_and_litter_are_never_data(photos):
    for path in ("train/cat/._0.png", "train/.ipynb_checkpoints/0.png", "train/__MACOSX/cat/0.png",
                 "train/dog/.ipynb_checkpoints/0.png", "val/dog/__MACOSX/._1.jpg"):  # fmt: skip
        (photos / path).parent.mkdir(parents=True, exist_ok=True)
        (photos / path).write_bytes(b"no image")
    (photos / "train" / "cat" / "Thumbs.db").write_bytes(b"no image")

    train, test = load_images(photos, split="train"), load_images(photos, split="test")

    assert (train.classes, len(train), len(test)) == (("cat", "dog"), 8, 4)
    assert train.left_out == test.left_out == {}
    assert inspect_folder(photos).errors == []


def test_files_that_are_no_images_are_counted_by_type(photos):
    for name in ("a.HEIC", "b.heic", "c.gif", "notes"):
        (photos / "train" / "cat" / name).write_bytes(b"something")
    (photos / "val" / "dog" / "d.jfif").write_bytes(b"something")

    assert load_images(photos, split="train").left_out == {".heic": 2, ".gif": 1, "no extension": 1}
    assert [split.left_out for split in inspect_folder(photos).splits] == [
        {".heic": 2, ".gif": 1, "no extension": 1},
        {".jfif": 1},
    ]


def test_all_faults_of_a_folder_are_found_at_once(photos):
    (photos / "train" / "cat" / "broken.jpg").write_bytes(b"\xff\xd8\xff broken")
    whole = (photos / "train" / "dog" / "1.png").read_bytes()
    (photos / "train" / "dog" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (photos / "val" / "dog" / "empty.png").write_bytes(b"")
    (photos / "train" / "bird").mkdir()
    picture(photos / "val" / "fish" / "0.png", 77)
    # the same pixels in another file format
    Image.open(photos / "train" / "cat" / "2.png").save(photos / "val" / "cat" / "copy.bmp")

    findings = inspect_folder(photos)
    train, test = findings.splits

    assert {path.rpartition("/")[2] for path, _ in train.bad} == {"broken.jpg", "cut.png"}
    assert [path.rpartition("/")[2] for path, _ in test.bad] == ["empty.png"]
    assert all(reason for split in findings.splits for _, reason in split.bad)
    assert train.empty_classes == ["bird"]
    assert findings.of_one_split == {"train": ["bird"], "test": ["fish"]}
    assert dict(train.counts) == {"bird": 0, "cat": 5, "dog": 5}
    assert [tuple(name.rpartition("/")[2] for name in pair) for pair in findings.duplicates] == [("2.png", "copy.bmp")]
    assert len(findings.errors) == 5


def test_a_folder_without_classes_is_an_error(tmp_path):
    with pytest.raises(DataError, match="Expected a folder per class, or folders train and val"):
        inspect_folder(tmp_path)


def test_arrays_have_counts_and_duplicates():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 4), dtype=np.uint8)
    from cpt_deploy.data import ArrayImages

    train = ArrayImages("own", "train", ("a", "b"), np.array([0, 0, 1]), pixels[:3])
    test = ArrayImages("own", "test", ("a", "b"), np.array([0, 0]), pixels[[1, 4]])
    findings = inspect_images({"train": train, "test": test})

    assert [dict(split.counts) for split in findings.splits] == [{"a": 2, "b": 1}, {"a": 2, "b": 0}]
    assert findings.duplicates == [("train image 1", "test image 0")]
    assert findings.errors == ["classes without test images: b"]


def test_bad_images_can_be_left_out(photos):
    (photos / "train" / "cat" / "broken.jpg").write_bytes(b"\xff\xd8\xff broken")
    seen = []
    images = without_bad(load_images(photos, split="train"), lambda done, total: seen.append((done, total)))

    assert isinstance(images, FileImages)
    assert [path.name for path in images.skipped] == ["broken.jpg"]
    assert len(images) == 8
    assert images.labels.tolist() == [0] * 4 + [1] * 4
    assert seen[-1] == (9, 9)
    for path in (photos / "train" / "dog").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"image of class 'dog' in photos .train. that can be read"):
        without_bad(load_images(photos, split="train"))


def test_the_command_lists_what_is_wrong_and_exits_with_5(photos, capsys):
    assert main(["datasets", "check", str(photos)]) == 0
    shown = capsys.readouterr()
    assert "8 images, 2 classes" in shown.out
    assert "can be trained on" in shown.err

    (photos / "val" / "dog" / "broken.jpg").write_bytes(b"no image")
    (photos / "val" / "dog" / "a.heic").write_bytes(b"no image")
    assert main(["datasets", "check", str(photos)]) == 5
    shown = capsys.readouterr()
    assert "broken.jpg" in shown.out
    assert "1 .heic" in shown.err
    assert "bad test images: 1" in shown.err
    assert "data.skip_bad=true" in shown.err

    assert main(["datasets", "check", str(photos), "--json"]) == 5
    found = json.loads(capsys.readouterr().out)
    assert [entry["file"].rpartition("/")[2] for entry in found["splits"][1]["bad"]] == ["broken.jpg"]
    assert found["splits"][0]["classes"] == {"cat": 4, "dog": 4}


def test_a_text_is_checked_by_its_own_task(tmp_path, capsys):
    shared = "a line of forty characters or more that both texts have\n"
    for split, text in {
        "train": f"the cat sat\n{shared}",
        "valid": "the dog\n",
        "test": f"a dog sat\n{shared}",
    }.items():
        (tmp_path / f"{split}.txt").write_text(text)
    assert main(["datasets", "check", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(split["split"], split["words"]) for split in found["splits"]] == [
        ("train", 14),
        ("valid", 2),
        ("test", 14),
    ]
    assert found["repeated_lines"] == [f"test: {shared.strip()}"]
    (tmp_path / "valid.txt").write_bytes(b"\xff")
    assert main(["datasets", "check", str(tmp_path)]) == 5
    assert "UTF-8" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["check"], ["check", "a", "b"], ["cifar*", "mnist"]])
def test_check_takes_one_folder(words, capsys):
    assert main(["datasets", *words]) == 2
    assert "Expected a pattern of names, or check and one folder" in capsys.readouterr().err


def test_a_known_data_set_can_be_checked(capsys):
    assert main(["datasets", "check", "digits", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [sum(split["classes"].values()) for split in found["splits"]] == [1442, 355]


def test_a_run_can_leave_bad_images_out(photos, tmp_path, capsys):
    (photos / "train" / "cat" / "broken.jpg").write_bytes(b"\xff\xd8\xff broken")
    (photos / "train" / "cat" / "phone.heic").write_bytes(b"something")
    words = [
        "train",
        f"data.name={photos}",
        "train.epochs=1",
        "precision.cycles=1",
        "train.batch_size=4",
        "model.name=tiny",
        "--quiet",
    ]

    assert main([*words, "--out", str(tmp_path / "first")]) == 5
    assert "broken.jpg" in capsys.readouterr().err
    assert main([*words, "--out", str(tmp_path / "second"), "data.skip_bad=true"]) == 0
    report = json.loads((tmp_path / "second" / "report.json").read_text())
    assert report["data"]["train_images"] == 8
    assert report["data"]["left_out"] == {".heic": 1, "unreadable": 1}
    capsys.readouterr()
    assert main([*words[:-1], "--dry-run", "data.skip_bad=true"]) == 0
    assert "1 .heic, 1 unreadable" in capsys.readouterr().out
