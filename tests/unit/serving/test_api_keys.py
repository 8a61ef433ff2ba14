import hashlib
import os
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpt_deploy.errors import CptError, DataError, UsageError
from cpt_serving.access import api_keys
from cpt_serving.access.api_keys import ApiKey, KeyRing, Scope, add_key, new_key, parse_keys, read_keys

HASH = hashlib.sha256(b"secret").hexdigest()


@pytest.fixture
def file(tmp_path):
    return tmp_path / "keys.txt"


def look_again(ring, monkeypatch):
    """Let the ring's clock pass its next look at the file."""
    monkeypatch.setattr(ring, "_looked", -api_keys._LOOK_AGAIN_S * 1e9)


def test_a_new_key_is_found_and_its_file_does_not_hold_it(file):
    key = add_key(file, "shop", ["infer", "metrics"])
    assert key.startswith("cpt_")
    content = file.read_text()
    assert key not in content
    # sha256sum, as anybody would check it.
    assert content == f"shop:infer,metrics:{hashlib.sha256(key.encode()).hexdigest()}\n"
    found = KeyRing(file).find(key.encode())
    assert (found.name, found.scopes) == ("shop", {Scope.INFER, Scope.METRICS})
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_keys_hold_256_random_bits():
    keys = {new_key() for _ in range(100)}
    assert len(keys) == 100
    assert {len(key) for key in keys} == {len("cpt_") + 43}


def test_keys_are_added_to_what_is_there(file):
    file.write_text(f"# of the team\n\nold:metrics:{HASH}")
    add_key(file, "new", ["admin"])
    assert [(key.name, *key.scopes) for key in read_keys(file)] == [("old", "metrics"), ("new", "admin")]
    with pytest.raises(UsageError, match="'old' already") as caught:
        add_key(file, "old", ["infer"])
    assert "revoke" in caught.value.hint


def test_another_key_is_not_found(file):
    key = add_key(file, "shop", ["infer"])
    ring = KeyRing(file)
    for other in (b"", b"secret", key[:-1].encode(), key.upper().encode(), HASH.encode(), new_key().encode()):
        assert ring.find(other) is None


def test_every_stored_key_is_compared_whichever_it_is(file, monkeypatch):
    keys = [add_key(file, name, ["infer"]) for name in ("a", "b", "c")]
    ring = KeyRing(file)
    compared = []
    monkeypatch.setattr(
        api_keys.hmac, "compare_digest", lambda one, other: compared.append((len(one), len(other))) or one == other
    )
    for key in (*keys, "none of them"):
        compared.clear()
        ring.find(key.encode())
        assert compared == [(32, 32)] * 3


def test_a_removed_line_revokes_its_key_without_a_restart(file, monkeypatch):
    keys = {name: add_key(file, name, ["infer"]).encode() for name in ("a", "b")}
    ring = KeyRing(file)
    file.write_text("".join(line for line in file.read_text().splitlines(keepends=True) if line.startswith("b")))
    look_again(ring, monkeypatch)
    assert (ring.find(keys["a"]), ring.find(keys["b"]).name) == (None, "b")
    added = add_key(file, "c", ["admin"])
    look_again(ring, monkeypatch)
    assert ring.find(added.encode()).name == "c"
    assert ring.has(Scope.ADMIN)


@pytest.mark.parametrize("content", ["nonsense", None], ids=["damaged", "gone"])
def test_a_file_that_cannot_be_read_any_more_changes_nothing(file, monkeypatch, caplog, content):
    key = add_key(file, "shop", ["infer"]).encode()
    ring = KeyRing(file)
    if content is None:
        file.unlink()
    else:
        file.write_text(content)
    look_again(ring, monkeypatch)
    with caplog.at_level("ERROR", "cpt_serving"):
        assert ring.find(key).name == "shop"
    assert "stay as they were" in caplog.text


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("shop", "name:scopes:sha256 in line 1"),
        (f"ok:infer:{HASH}\nshop:infer:cpt_abc", r"64 hexadecimal digits, in line 2"),
        (f"shop:infer:{HASH.upper()}", "64 hexadecimal digits"),
        (f"sh op:infer:{HASH}", "a name of up to 64"),
        (f"shop:admni:{HASH}", "infer, metrics, admin in line 1.*'admni'"),
        (f"shop::{HASH}", "infer, metrics, admin"),
        (f"shop:infer:{HASH}\nshop:infer:{HASH[::-1]}", "each name once"),
        (f"a:infer:{HASH}\nb:infer:{HASH}", "each key once"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line_that_quotes_no_key(file, content, expected):
    file.write_text(content)
    with pytest.raises(CptError, match=expected) as caught:
        read_keys(file)
    assert "cpt_abc" not in caught.value.message
    assert "\n" not in caught.value.message


def test_a_missing_file_and_one_that_is_not_text_are_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.txt, but got: No such file"):
        read_keys(tmp_path / "nowhere.txt")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="not text"):
        read_keys(tmp_path / "binary")


@pytest.mark.parametrize("name", ["", "a b", "a:b", "x" * 65, "a\nb"])
def test_a_name_that_would_not_fit_into_a_line_is_refused(file, name):
    with pytest.raises(UsageError, match="Expected a name"):
        add_key(file, name, ["infer"])
    assert not file.exists()


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_a_directory_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match="Expected to write"):
        add_key(tmp_path / "missing" / "keys.txt", "shop", ["infer"])


@given(
    st.dictionaries(
        st.from_regex(r"\A[A-Za-z0-9._-]{1,64}\Z"),
        st.tuples(st.sets(st.sampled_from(list(Scope)), min_size=1), st.binary(min_size=32, max_size=32)),
        max_size=5,
    )
)
def test_lines_read_back_as_they_were_written(contents):
    keys = tuple(ApiKey(name, frozenset(scopes), digest) for name, (scopes, digest) in contents.items())
    text = "".join(key.line() + "\n" for key in keys)
    if len({key.digest for key in keys}) == len(keys):
        assert parse_keys(text, "file") == keys
