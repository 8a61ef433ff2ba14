"""What a directory of models loads where evidence or a signature is required, and what it says where it is not."""

import asyncio

import pytest

from cpt_deploy.errors import ValidationFailedError
from cpt_serving import load_settings
from cpt_serving.repository.model_repository import ModelRepository
from tests.unit.serving.conftest import started


def test_with_required_evidence_a_bundle_without_is_refused(models, shared_bundle):
    settings = load_settings(bundle=shared_bundle.path, require_evidence=True)
    with pytest.raises(ValidationFailedError, match="evidence"):
        ModelRepository(settings).load_now()

    async def scenario():
        async with started(models(one=["1"]), require_evidence=True) as repository:
            assert "evidence" in repository.models.index()[0].reason

    asyncio.run(scenario())


def test_with_a_required_signature_only_what_is_signed_with_a_key_is_loaded(models, tmp_path):
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    from cpt_deploy.bundle import Bundle
    from cpt_deploy.bundle.integrity.signatures import sign_bundle

    keys = tmp_path / "keys"
    keys.mkdir()
    for name in ("old", "new"):
        key = ec.generate_private_key(ec.SECP256R1())
        kinds = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        (keys / f"{name}.key").write_bytes(key.private_bytes(serialization.Encoding.PEM, *kinds))
        public = key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        (keys / f"{name}.pub").write_bytes(public)
    directory = models(one=["1"], two=["1"], three=["1"])
    for name in ("one", "three"):
        sign_bundle(Bundle.open(directory / name / "1"), keys / "new.key")
    (directory / "three" / "1" / "model.sig").write_text("{}")

    async def scenario():
        async with started(directory, require_signature=keys) as repository:
            states = {status.name: (status.state, status.reason) for status in repository.models.index()}
            assert states["one"][0] == "READY"
            assert "no model.sig" in states["two"][1]
            assert "does not hold" in states["three"][1]
        async with started(directory, require_signature=keys / "old.pub") as repository:
            assert all(status.state != "READY" for status in repository.models.index())

    asyncio.run(scenario())


def test_evidence_of_other_files_is_said_where_it_is_not_required(models, caplog):
    from cpt_deploy.bundle import Bundle, update_validation

    directory = models(one=["1"])
    report = {"content_sha256": "0" * 64, "verdict": "passed", "passed": True, "reasons": [], "integers": None,
              "dataset": {"name": "d", "samples": 1}, "runtimes": [],
              "metric": {"name": "accuracy", "higher_is_better": True, "percent": True},
              "validated_at": "2026-01-01"}  # fmt: skip
    update_validation(Bundle.open(directory / "one" / "1"), report)

    async def scenario():
        async with started(directory) as repository:
            assert repository.models.find("one")

    asyncio.run(scenario())
    assert "was changed after its validation" in caplog.text
