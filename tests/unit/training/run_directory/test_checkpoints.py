import errno
import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from cpt_deploy.errors import CheckpointError, DataError
from cpt_deploy.training.run_directory.checkpoints import Checkpoint, read_checkpoint, write_checkpoint

CHECKPOINT = Checkpoint(
    {
        "model.weight": torch.arange(6.0).reshape(2, 3),
        "model.strided": torch.arange(6.0).reshape(2, 3).t(),
        "model.count": torch.tensor(7),
        "model.flag": torch.tensor([True, False]),
        "model.half": torch.tensor([1.5], dtype=torch.bfloat16),
        "model.empty": torch.zeros(0, 3),
    },
    {"progress": {"step": 3, "loss": 0.1, "best": None}},
)


def test_checkpoint_reads_back_as_it_was(tmp_path):
    write_checkpoint(tmp_path / "a.safetensors", CHECKPOINT)

    found = read_checkpoint(tmp_path / "a.safetensors")

    assert found.state["progress"] == CHECKPOINT.state["progress"]
    assert found.tensors.keys() == CHECKPOINT.tensors.keys()
    for name, tensor in CHECKPOINT.tensors.items():
        assert found.tensors[name].dtype == tensor.dtype
        assert torch.equal(found.tensors[name], tensor)
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_checkpoint_is_a_plain_safetensors_file(tmp_path):
    write_checkpoint(tmp_path / "a.safetensors", CHECKPOINT)

    assert torch.equal(load_file(tmp_path / "a.safetensors")["model.weight"], CHECKPOINT.tensors["model.weight"])


@settings(max_examples=60)
@given(data=st.data())
def test_any_truncation_or_flipped_byte_is_found(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("checkpoint") / "a.safetensors"
    write_checkpoint(path, CHECKPOINT)
    content = path.read_bytes()
    index = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        path.write_bytes(content[:index])
    else:
        flipped = content[index] ^ (1 << data.draw(st.integers(0, 7)))
        path.write_bytes(content[:index] + bytes([flipped]) + content[index + 1 :])

    found = outcome(path)

    if found is not None:  # a byte of padding or of a key that nobody reads
        assert found.state["progress"] == CHECKPOINT.state["progress"]
        assert all(torch.equal(found.tensors[name], CHECKPOINT.tensors[name]) for name in CHECKPOINT.tensors)


def outcome(path):
    try:
        return read_checkpoint(path)
    except CheckpointError:
        return None


def test_missing_checkpoint_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match=r"Expected a whole checkpoint at .*none\.safetensors"):
        read_checkpoint(tmp_path / "none.safetensors")


def test_other_safetensors_file_is_no_checkpoint(tmp_path):
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")

    with pytest.raises(CheckpointError, match="checksum"):
        read_checkpoint(tmp_path / "other.safetensors")


def test_checkpoint_of_a_newer_version_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("cpt_deploy.training.run_directory.checkpoints.FORMAT_VERSION", 3)
    write_checkpoint(tmp_path / "a.safetensors", CHECKPOINT)
    monkeypatch.undo()

    with pytest.raises(CheckpointError, match="format 2") as caught:
        read_checkpoint(tmp_path / "a.safetensors")
    assert "newer cpt-deploy" in caught.value.hint


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_full_disk_leaves_the_checkpoint_before_it(tmp_path, monkeypatch, call):
    path = tmp_path / "a.safetensors"
    write_checkpoint(path, CHECKPOINT)
    before = path.read_bytes()

    def fail(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if call == "fsync":
        monkeypatch.setattr(os, "fsync", fail)
    else:
        monkeypatch.setattr("pathlib.Path.replace", fail)
    with pytest.raises(DataError, match="No space left on device"):
        write_checkpoint(path, Checkpoint({"model.weight": torch.ones(2)}, {}), hint="free some space")

    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.safetensors"]
