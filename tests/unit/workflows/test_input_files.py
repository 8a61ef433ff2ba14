"""Values of inputs in NumPy's files and folders."""

from pathlib import Path

import numpy as np
import pytest

from cpt_deploy.errors import DataError, UsageError
from cpt_deploy.signature import TensorSpec
from cpt_deploy.workflows.imported.input_files import InputFiles, has_input_files

X, Y = TensorSpec("a", "float32", (3,)), TensorSpec("b", "int64", ())
A, B = np.arange(20 * 3, dtype=np.float32).reshape(20, 3), np.arange(20)


def written(folder: Path, form: str) -> Path:
    if form == "file":
        np.savez(folder / "inputs.npz", a=A, b=B)
        return folder / "inputs.npz"
    for name, values in (("a", A), ("b", B)):
        if form == "arrays":
            np.save(folder / f"{name}.npy", values)
        if form == "folders":
            (folder / name).mkdir()
            for part in range(2):
                np.save(folder / name / f"{part:04}.npy", values[10 * part : 10 * part + 10])
    if form == "files":
        np.savez(folder / "0.npz", a=A[:10], b=B[:10])
        np.savez(folder / "1.npz", a=A[10:], b=B[10:])
    return folder


@pytest.mark.parametrize("form", ["file", "arrays", "folders", "files"])
def test_all_forms_have_the_same_rows(form: str, tmp_path: Path) -> None:
    path = written(tmp_path, form)
    assert has_input_files(path)
    found = InputFiles.find(path, [X, Y])
    assert found.count == 20
    batches = list(found.batches())
    assert len(batches) == found.number_of_batches
    assert max(len(batch["b"]) for batch in batches) == 8
    for name, values in (("a", A), ("b", B)):
        np.testing.assert_array_equal(np.concatenate([batch[name] for batch in batches]), values)
        np.testing.assert_array_equal(found.ends()[name], values[[0, -1]])


def test_data_sets_of_images_are_told_apart(tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", x_train=A, y_train=B)
    assert not has_input_files(tmp_path / "set.npz")
    (tmp_path / "archives").mkdir()
    np.savez(tmp_path / "archives" / "train.npz", images=A, labels=B)
    assert not has_input_files(tmp_path / "archives")
    (tmp_path / "photos" / "train" / "cat").mkdir(parents=True)
    (tmp_path / "photos" / "train" / "cat" / "1.jpg").touch()
    assert not has_input_files(tmp_path / "photos")
    assert not has_input_files(Path("digits"))


def test_numbers_of_another_size_are_converted(tmp_path: Path) -> None:
    np.savez(tmp_path / "inputs.npz", a=A.astype(np.float64), b=B.astype(np.int32))
    found = InputFiles.find(tmp_path / "inputs.npz", [X, Y])
    for arrays in (found.ends(), *found.batches(), *found.calls({"a": ("N", 3), "b": ("N",)})):
        assert {name: array.dtype for name, array in arrays.items()} == {"a": np.float32, "b": np.int64}
    np.savez(tmp_path / "whole.npz", a=A.astype(np.int64), b=B)
    np.testing.assert_array_equal(next(InputFiles.find(tmp_path / "whole.npz", [X, Y]).batches())["a"], A[:8])


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (A[:, :2], B, r"rows of a, float32 \(N, 3\) in a call, but got float32 \(20, 2\)"),
        (A[:, 0], B, r"but got float32 \(20,\)"),
        (A, B + 0.5, r"rows of b, int64 \(N\) in a call, but got float64 \(20,\)"),
        (A.astype(str), B, "but got <U"),
    ],
)
def test_arrays_of_other_sizes_or_kinds_are_refused(a: np.ndarray, b: np.ndarray, message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "inputs.npz", a=a, b=b)
    with pytest.raises(UsageError, match=message):
        InputFiles.find(tmp_path / "inputs.npz", [X, Y])


def test_what_does_not_fit_is_one_line(tmp_path: Path) -> None:
    path = written(tmp_path, "file")
    with pytest.raises(UsageError, match=r"Expected arrays a, c in inputs\.npz, but got a, b"):
        InputFiles.find(path, [X, TensorSpec("c", "int64", ())])
    np.savez(tmp_path / "uneven.npz", a=A, b=B[:3])
    with pytest.raises(UsageError, match="20 of a, 3 of b"):
        _ = InputFiles.find(tmp_path / "uneven.npz", [X, Y]).count
    with pytest.raises(UsageError, match="equally many calls"):
        InputFiles.find(tmp_path / "uneven.npz", [X, Y]).number_of_calls({"a": ("N", 4), "b": ("N",)})
    with pytest.raises(DataError, match="Expected arrays in"):
        InputFiles.find(tmp_path / "missing.npz", [X])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="Expected values of a"):
        InputFiles.find(tmp_path / "empty", [X])
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(DataError, match="Expected arrays in"):
        InputFiles.find(path, [X, Y])
