"""Signatures made and checked with keys of this test, and read by the library's own command."""

import json
import shutil
import subprocess
import sys

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from cpt_cli.main import main
from cpt_deploy.bundle import Bundle, update_validation
from cpt_deploy.bundle.integrity.signatures import public_keys, require_signature, sign_bundle
from cpt_deploy.errors import BundleError, DataError, MissingExtraError, ValidationFailedError

PRIVATE = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8)
PUBLIC = (serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def write_pair(folder, name, curve=None):
    key = ec.generate_private_key(curve or ec.SECP256R1())
    secret, public = folder / f"{name}.key", folder / f"{name}.pub"
    secret.write_bytes(key.private_bytes(*PRIVATE, serialization.NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(*PUBLIC))
    return secret, public


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    return {name: write_pair(folder, name) for name in ("ours", "theirs")}


@pytest.fixture
def signed(shared_bundle, tmp_path, keys):
    path = shutil.copytree(shared_bundle.path, tmp_path / "bundle")
    bundle = Bundle.open(path)
    assert sign_bundle(bundle, keys["ours"][0]) == path / "model.sig"
    return bundle


def test_a_signature_holds_wherever_the_bundle_lies(signed, keys, tmp_path):
    ours, theirs = keys["ours"][1], keys["theirs"][1]
    assert require_signature(signed, [theirs, ours]) == ours
    moved = Bundle.open(shutil.copytree(signed.path, tmp_path / "elsewhere"))
    assert require_signature(moved, [ours]) == ours
    assert moved.content_sha256 == signed.content_sha256


def test_the_librarys_own_command_reads_it(signed, keys):
    signature, public = str(signed.path / "model.sig"), str(keys["ours"][1])
    words = ["verify", "key", str(signed.path), "--signature", signature, "--public_key", public]
    done = subprocess.run(
        [sys.executable, "-m", "model_signing", *words], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("curve", [ec.SECP384R1(), ec.SECP521R1()], ids=lambda curve: curve.name)
def test_longer_curves_do_as_well(signed, tmp_path, curve):
    secret, public = write_pair(tmp_path, "long", curve)
    sign_bundle(signed, secret)
    assert require_signature(signed, [public]) == public


def test_another_key_does_not(signed, keys):
    with pytest.raises(ValidationFailedError, match="made with another key"):
        require_signature(signed, [keys["theirs"][1]])


def test_an_unsigned_bundle_is_refused(shared_bundle, keys):
    with pytest.raises(ValidationFailedError, match=r"has no model\.sig") as caught:
        require_signature(shared_bundle, [keys["ours"][1]])
    assert "cpt sign" in str(caught.value.hint)


def refresh(path):
    """Write the checksums anew, as whoever can write a bundle can."""
    import hashlib

    lines = (path / "SHA256SUMS").read_text().splitlines()
    names = [line.split("  ")[1] for line in lines]
    digests = {name: hashlib.sha256((path / name).read_bytes()).hexdigest() for name in names}
    (path / "SHA256SUMS").write_text("".join(f"{digest}  {name}\n" for name, digest in digests.items()))


@pytest.mark.parametrize(
    "name", ["model.onnx", "labels.txt", "preprocessor_config.json", "config.json", "README.md", "golden.safetensors"]
)
def test_a_changed_file_is_named_though_its_checksum_holds(signed, keys, name):
    path = signed.path / name
    path.write_bytes(path.read_bytes() + b" " if name != "labels.txt" else b"green\nred\n")
    if name in {"model.onnx", "golden.safetensors"}:
        path.write_bytes(path.read_bytes()[:-1])
        path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
    refresh(signed.path)
    with pytest.raises(ValidationFailedError, match=f"{name} is not as it was signed"):
        require_signature(signed, [keys["ours"][1]])


def test_added_and_removed_files_are_named(signed, keys):
    (signed.path / "more.txt").write_text("more")
    with pytest.raises(ValidationFailedError, match=r"more\.txt was added"):
        require_signature(signed, [keys["ours"][1]])
    (signed.path / "more.txt").unlink()
    (signed.path / "README.md").unlink()
    with pytest.raises(ValidationFailedError, match=r"README\.md is missing"):
        require_signature(signed, [keys["ours"][1]])


def test_what_was_opened_counts_and_not_what_lies_there_by_now(signed, shared_bundle, keys):
    """A file that was exchanged while the bundle was opened and put back for the check is found."""
    digests = {**signed.digests, "model.onnx": "0" * 64}
    from dataclasses import replace

    with pytest.raises(ValidationFailedError, match=r"model\.onnx as it was opened"):
        require_signature(replace(signed, digests=digests), [keys["ours"][1]])


def test_a_signature_that_leaves_files_out_is_refused(signed, keys):
    """The library lets a signature name paths that it does not cover."""
    import model_signing

    config = model_signing.hashing.Config().set_ignored_paths(paths=["model.sig", "labels.txt"], ignore_git_paths=False)
    signer = model_signing.signing.Config().use_elliptic_key_signer(private_key=keys["ours"][0])
    signer.set_hashing_config(config).sign(signed.path, signed.path / "model.sig")
    with pytest.raises(ValidationFailedError, match=r"labels\.txt"):
        require_signature(signed, [keys["ours"][1]])


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff", b'{"mediaType": 1}', b'{"verificationMaterial": {}}'])
def test_a_damaged_signature_is_no_signature(signed, keys, content):
    (signed.path / "model.sig").write_bytes(content)
    with pytest.raises(ValidationFailedError, match="is damaged"):
        require_signature(signed, [keys["ours"][1]])


def test_a_signature_of_other_words_is_no_signature(signed, keys):
    path = signed.path / "model.sig"
    envelope = json.loads(path.read_text())
    envelope["dsseEnvelope"]["payload"] = envelope["dsseEnvelope"]["payload"][:-8] + "AAAAAAA="
    path.write_text(json.dumps(envelope))
    with pytest.raises(ValidationFailedError, match="does not hold"):
        require_signature(signed, [keys["ours"][1]])


def test_keys_that_cannot_be_used_are_one_error(signed, keys, tmp_path):
    secret, public = keys["ours"]
    with pytest.raises(DataError, match="a private key"):
        sign_bundle(signed, public)
    with pytest.raises(DataError, match="No such file"):
        sign_bundle(signed, tmp_path / "none")
    with pytest.raises(DataError, match="a public key"):
        public_keys(secret)
    with pytest.raises(DataError, match="there are none"):
        public_keys(tmp_path)
    other = tmp_path / "rsa.pub"
    other.write_bytes(rsa.generate_private_key(65537, 2048).public_key().public_bytes(*PUBLIC))
    with pytest.raises(DataError, match="P-256"):
        public_keys(other)
    locked = tmp_path / "locked.key"
    locked.write_bytes(
        ec.generate_private_key(ec.SECP256R1()).private_bytes(*PRIVATE, serialization.BestAvailableEncryption(b"x"))
    )
    with pytest.raises(DataError, match="without a password"):
        sign_bundle(signed, locked)


def test_a_directory_of_keys_is_all_that_end_in_pub_or_pem(keys):
    folder = keys["ours"][1].parent
    assert public_keys(folder) == [folder / "ours.pub", folder / "theirs.pub"]


def test_files_that_are_not_the_bundles_are_not_signed(signed, keys):
    (signed.path / "notes.txt").write_text("mine")
    with pytest.raises(BundleError, match=r"notes\.txt"):
        sign_bundle(signed, keys["ours"][0])


def test_a_validation_removes_the_signature_that_does_not_cover_it(signed):
    updated = update_validation(signed, {"anything": 1})
    assert not (updated.path / "model.sig").exists()
    assert updated.content_sha256 == signed.content_sha256


def test_the_commands_sign_and_verify(signed, keys, capsys):
    secret, public = keys["ours"]
    assert main(["sign", str(signed.path), "--key", str(secret), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["content_sha256"] == signed.content_sha256
    assert main(["verify", str(signed.path), "--key", str(public.parent)]) == 0
    assert "as it was signed" in capsys.readouterr().out
    assert main(["verify", str(signed.path), "--key", str(keys["theirs"][1])]) == 4
    assert main(["sign", str(signed.path), "--key", str(public)]) == 5
    (signed.path / "README.md").write_text("changed")
    assert main(["verify", str(signed.path), "--key", str(public)]) == 4
    (signed.path / "README.md").unlink()
    assert main(["verify", str(signed.path), "--key", str(public)]) == 4


def test_without_the_extra_it_is_named(signed, keys, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "model_signing", None)
    with pytest.raises(MissingExtraError) as caught:
        require_signature(signed, [keys["ours"][1]])
    assert "'.[signing]'" in caught.value.hint
    assert main(["sign", str(signed.path), "--key", str(keys["ours"][0])]) == 3
    assert "'.[signing]'" in capsys.readouterr().err
