"""Seals and signatures: no bit of a document changes unseen, and who signed it can be told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhdtool.errors import CorruptError, FileMissingError, FindingLog, KeyFileError, MissingPackageError
from vhdtool.export.proof import seal as seals
from vhdtool.export.proof.seal import (
    CHECKED_PIECE,
    Seal,
    SealedWriter,
    Signer,
    Verifier,
    check_sealed,
    load_signer,
    load_verifier,
    sealed_text,
)
from vhdtool.source import MemorySource

pytest.importorskip("cryptography", reason="the extra 'sign' is not installed")

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

PEM, SSH = serialization.Encoding.PEM, serialization.Encoding.OpenSSH
PKCS8, OPENSSH = serialization.PrivateFormat.PKCS8, serialization.PrivateFormat.OpenSSH
PLAIN = serialization.NoEncryption()


def a_key(number: int = 1) -> ed25519.Ed25519PrivateKey:
    return ed25519.Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32)


def a_signer(number: int = 1) -> Signer:
    return Signer(a_key(number))


def a_verifier(number: int = 1) -> Verifier:
    return Verifier(a_signer(number).public_key)


def checked(data: bytes, verifier: Verifier | None = None) -> Seal:
    return check_sealed(MemorySource("m.json", data), FindingLog("m.json"), verifier)


def refused(data: bytes, verifier: Verifier | None = None) -> tuple[str, int | None]:
    """Code and place of the finding that refuses ``data``."""
    with pytest.raises(CorruptError) as caught:
        checked(data, verifier)
    assert caught.value.exit_code == 65
    finding = caught.value.finding
    assert finding is not None
    return finding.code, finding.location.offset


def flipped(data: bytes, at: int, bit: int = 0) -> bytes:
    changed = bytearray(data)
    changed[at] ^= 1 << bit
    return bytes(changed)


DOCUMENT = {"a": 1, "note": "…", "rows": [1, 2, 3]}


# ------------------------------------------------------------ seals


def test_a_sealed_document_is_json_and_its_seal_is_that_of_what_stands_in_front_of_its_line() -> None:
    import hashlib
    import zlib

    text = sealed_text(DOCUMENT)

    document = json.loads(text)
    assert {name: document[name] for name in DOCUMENT} == DOCUMENT
    front = text[: text.index(b' "seal"')]
    assert document["seal"] == hashlib.sha256(front).hexdigest()
    body = text[: text.index(b',\n "checks"')]
    assert document["checks"] == f"{zlib.crc32(body):08x}"
    assert checked(text).digest.hex() == document["seal"]
    assert checked(text).state == "unsigned"


@given(
    pieces=st.lists(st.integers(1, 3 * CHECKED_PIECE), max_size=4),
    signed=st.booleans(),
)
def test_how_a_document_is_cut_while_it_is_written_makes_no_difference(
    pieces: list[int], signed: bool
) -> None:
    text = b'{"x": "' + b"".join(bytes([97 + i % 26]) * length for i, length in enumerate(pieces)) + b'"'
    signer = a_signer() if signed else None
    written: list[bytes] = []
    writer = SealedWriter(written.append)
    at = 0
    for length in pieces:
        writer.write(text[at : at + length])
        at += length
    writer.write(text[at:])
    seal = writer.seal(signer)

    whole: list[bytes] = []
    once = SealedWriter(whole.append)
    once.write(text)

    assert once.seal(signer) == seal
    assert b"".join(whole) == b"".join(written)
    assert checked(b"".join(written)).digest == seal


@pytest.mark.parametrize("signer", [None, a_signer()], ids=["sealed", "signed"])
def test_no_bit_of_a_document_changes_unseen(signer: Signer | None) -> None:
    text = sealed_text(DOCUMENT, signer)
    body = text.index(b',\n "checks"')

    for bit in range(len(text) * 8):
        code, offset = refused(flipped(text, bit // 8, bit % 8))

        if bit // 8 < body:
            assert (code, offset) == ("manifest.seal", bit // 8)
        else:
            assert offset is not None
            assert abs(offset - bit // 8) < 300
    assert refused(flipped(text, text.index(b'"seal": "') + 9))[0] == "manifest.seal"


@pytest.mark.parametrize("at", [10, CHECKED_PIECE - 1, CHECKED_PIECE, 3 * CHECKED_PIECE + 777])
def test_a_flipped_bit_of_a_long_document_is_told_to_the_byte(at: int) -> None:
    text = sealed_text({str(i): "x" * 1000 for i in range(300)})

    for bit in (0, 7):
        assert refused(flipped(text, at, bit)) == ("manifest.seal", at)


@given(at=st.integers(0, 999), value=st.integers(0, 255))
def test_a_changed_byte_is_told_with_what_stood_there(at: int, value: int) -> None:
    text = sealed_text({"x": "y" * 2000})
    changed = text[:at] + bytes([value]) + text[at + 1 :]

    if changed != text:
        with pytest.raises(CorruptError) as caught:
            checked(changed)
        finding = caught.value.finding
        assert finding is not None
        assert finding.location.offset == at
        assert (finding.found, finding.expected) == (hex(value), hex(text[at]))


def test_more_damage_is_told_by_the_first_piece_that_has_some() -> None:
    text = sealed_text({str(i): "x" * 1000 for i in range(300)})

    damaged = flipped(flipped(text, 3 * CHECKED_PIECE + 5), CHECKED_PIECE + 7)
    assert refused(damaged) == ("manifest.seal", CHECKED_PIECE)
    assert refused(flipped(flipped(text, 100), 200)) == ("manifest.seal", 0)


def test_a_damaged_check_is_told_as_that() -> None:
    text = sealed_text(DOCUMENT)
    at = text.index(b'"checks": "') + 11

    assert refused(flipped(text, at, 6)) == ("manifest.seal", at)
    assert refused(flipped(text, at + 3, 0)) == ("manifest.seal", at)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{}",
        b"\n}\n",
        sealed_text(DOCUMENT)[1:],
        sealed_text(DOCUMENT)[:-1],
        sealed_text(DOCUMENT) + b"\n",
        sealed_text(DOCUMENT).replace(b'"checks": "', b'"checks": "00000000'),
        b"," + sealed_text({})[sealed_text({}).index(b"\n") :],
    ],
    ids=lambda text: str(text)[:30],
)
def test_what_is_not_sealed_is_refused(text: bytes) -> None:
    assert refused(text)[0] == "manifest.seal"


def test_a_document_longer_than_any_is_not_read() -> None:
    class Endless(MemorySource):
        def read_exact(self, offset: int, length: int, *, field: str) -> bytes:
            raise AssertionError("read")

    source = Endless("m.json", b"")
    source.size = 1 << 60

    with pytest.raises(CorruptError, match=r"manifest\.seal"):
        check_sealed(source, FindingLog("m.json"))


def test_reading_takes_no_more_memory_than_a_few_pieces() -> None:
    import tracemalloc

    text = sealed_text({str(i): "x" * 50_000 for i in range(200)})
    source = MemorySource("m.json", text)
    tracemalloc.start()
    try:
        check_sealed(source, FindingLog("m.json"))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert len(text) > 10_000_000
    assert peak < 1_000_000


# ------------------------------------------------------------ signatures


def test_a_signature_says_whose_it_is_and_how_far_that_was_checked() -> None:
    text = sealed_text(DOCUMENT, a_signer())
    key = a_signer().public_key

    assert checked(text) == Seal(checked(text).digest, key, "own")
    assert checked(text, a_verifier()).state == "trusted"
    assert key.hex() in str(checked(text))
    assert "not checked against a key of yours" in str(checked(text))
    assert "that was asked for" in str(checked(text, a_verifier()))
    document = json.loads(text)
    assert document["signer"] == {"algorithm": "ed25519", "public_key": key.hex()}
    a_key().public_key().verify(
        bytes.fromhex(document["signature"]), b"vhdtool manifest 1\n" + bytes.fromhex(document["seal"])
    )


def test_a_document_of_another_signer_or_of_none_is_refused_when_a_key_is_asked_for() -> None:
    assert refused(sealed_text(DOCUMENT, a_signer(2)), a_verifier())[0] == "manifest.signature"
    assert refused(sealed_text(DOCUMENT), a_verifier())[0] == "manifest.signature"


def test_a_signature_that_was_taken_off_put_on_or_exchanged_is_found() -> None:
    signed, plain = sealed_text(DOCUMENT, a_signer()), sealed_text(DOCUMENT)
    other = sealed_text({**DOCUMENT, "a": 2}, a_signer())
    line = signed[signed.index(b',\n "signature"') :]

    for forged in (
        signed.replace(line, b"\n}\n"),
        plain.replace(b'"\n}\n', b'"' + line),
        signed.replace(line, other[other.index(b',\n "signature"') :]),
    ):
        assert refused(forged)[0] == "manifest.signature"


def test_someone_who_seals_a_forged_document_anew_cannot_sign_it_for_another() -> None:
    forged = sealed_text({**DOCUMENT, "a": 2}, a_signer(3))
    line = b'"public_key": "%s"'
    as_if = forged.replace(
        line % a_signer(3).public_key.hex().encode(), line % a_signer(1).public_key.hex().encode()
    )

    assert refused(forged, a_verifier())[0] == "manifest.signature"
    assert refused(as_if, a_verifier())[0] == "manifest.seal"


def test_without_cryptography_a_signature_is_told_and_not_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    text = sealed_text(DOCUMENT, a_signer())
    monkeypatch.setitem(__import__("sys").modules, "cryptography.hazmat.primitives.asymmetric.ed25519", None)

    assert checked(text).state == "unchecked"
    assert "not installed" in str(checked(text))
    for load in (load_signer, load_verifier):
        with pytest.raises(MissingPackageError, match="'sign'") as caught:
            load("key.pem")
        assert caught.value.exit_code == 69


# ------------------------------------------------------------ keys


def a_key_file(folder: Path, data: bytes) -> Path:
    path = folder / "key"
    path.write_bytes(data)
    return path


PASSWORD = serialization.BestAvailableEncryption(b"s\xc3\xa4cret")


@pytest.mark.parametrize("form", [PKCS8, OPENSSH], ids=["pkcs8", "openssh"])
@pytest.mark.parametrize("encryption", [PLAIN, PASSWORD], ids=["plain", "encrypted"])
def test_private_keys_load_in_either_form(
    tmp_path: Path, form: Any, encryption: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if form is OPENSSH and encryption is PASSWORD:
        pytest.importorskip("bcrypt", reason="encrypted OpenSSH keys need bcrypt")
    path = a_key_file(tmp_path, a_key().private_bytes(PEM, form, encryption))
    monkeypatch.setenv(seals.PASSWORD_VARIABLE, "säcret")

    assert load_signer(path).public_key == a_signer().public_key


def test_public_keys_load_in_either_form(tmp_path: Path) -> None:
    spki, ssh = serialization.PublicFormat.SubjectPublicKeyInfo, serialization.PublicFormat.OpenSSH
    public = a_key().public_key()

    for data in (public.public_bytes(PEM, spki), public.public_bytes(SSH, ssh) + b" me@here\n"):
        assert load_verifier(a_key_file(tmp_path, data)).public_key == a_signer().public_key


def test_an_encrypted_key_without_its_pass_phrase_names_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = a_key_file(tmp_path, a_key().private_bytes(PEM, PKCS8, PASSWORD))

    monkeypatch.delenv(seals.PASSWORD_VARIABLE, raising=False)
    with pytest.raises(KeyFileError, match=seals.PASSWORD_VARIABLE) as caught:
        load_signer(path)
    assert caught.value.exit_code == 65
    monkeypatch.setenv(seals.PASSWORD_VARIABLE, "wrong")
    with pytest.raises(KeyFileError, match="pass phrase is wrong"):
        load_signer(path)


def test_keys_of_other_kinds_are_named(tmp_path: Path) -> None:
    spki = serialization.PublicFormat.SubjectPublicKeyInfo
    others: tuple[Any, ...] = (rsa.generate_private_key(65537, 2048), ec.generate_private_key(ec.SECP256R1()))
    for key, kind in zip(others, ("RSA", "EllipticCurve|EC")):
        with pytest.raises(KeyFileError, match=kind):
            load_signer(a_key_file(tmp_path, key.private_bytes(PEM, PKCS8, PLAIN)))
        with pytest.raises(KeyFileError, match=kind):
            load_verifier(a_key_file(tmp_path, key.public_key().public_bytes(PEM, spki)))


def test_a_public_key_does_not_sign_and_a_private_one_is_not_asked_for_to_check(tmp_path: Path) -> None:
    spki = serialization.PublicFormat.SubjectPublicKeyInfo

    with pytest.raises(KeyFileError, match="is a public key"):
        load_signer(a_key_file(tmp_path, a_key().public_key().public_bytes(PEM, spki)))
    with pytest.raises(KeyFileError, match="is a private key"):
        load_verifier(a_key_file(tmp_path, a_key().private_bytes(PEM, PKCS8, PLAIN)))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 100,
        b"not a key",
        b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
        b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
        b"-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n",
        b"ssh-ed25519 AAAA",
        b"x" * 100_000,
    ],
    ids=lambda data: str(data)[:30],
)
def test_what_is_no_key_is_refused_and_not_quoted(tmp_path: Path, data: bytes) -> None:
    for load in (load_signer, load_verifier):
        with pytest.raises(KeyFileError) as caught:
            load(a_key_file(tmp_path, data))
        assert "AAAA" not in str(caught.value)


def test_a_missing_key_is_exit_66(tmp_path: Path) -> None:
    for load in (load_signer, load_verifier):
        with pytest.raises(FileMissingError):
            load(tmp_path / "none.pem")
