"""Sealing of JSON documents that are written in pieces: no bit of one changes unseen, and who signed it.

::

    {
     ...                                              whatever the document is about
     "signer": {"algorithm": "ed25519", "public_key": "d75a98..."},      when it is signed
     "checks": "1c291ca3f00d...",                     CRC-32 of each 64 KiB in front of this line
     "seal": "9f86d081...",                           SHA-256 of all bytes in front of this line
     "signature": "e5564300..."                       of the seal, when it is signed
    }

These lines end the document, in this form to the byte: whoever reformats it breaks the seal.  The seal proves
that the document is whole, the signature proves whose it is; ``checks`` prove nothing, they tell where damage
is.  A CRC is linear: from a wrong one follows the byte that was changed, if it was only one.

Signatures are ed25519, over ``SIGNED_PREFIX`` and the seal's 32 bytes.  They need the package cryptography.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import zlib
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn

from vhdtool.errors import FindingLog, KeyFileError, MissingPackageError, printable
from vhdtool.source import ByteSource, FileSource

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

SIGNED_PREFIX: Final = b"vhdtool manifest 1\n"
PASSWORD_VARIABLE: Final = "VHDTOOL_KEY_PASSWORD"
ALGORITHM: Final = "ed25519"
CHECKED_PIECE: Final = 64 << 10
# The list of chunks of the largest disk takes 7 GiB; a larger document is nonsense, not to be read through.
DOCUMENT_SIZE_MAX: Final = 8 << 30
_KEY_BYTES_MAX: Final = 64 << 10
_POLYNOMIAL: Final = 0xEDB88320  # CRC-32 as zlib and Ethernet have it, bits reversed

_SIGNER: Final = ',\n "signer": {"algorithm": "ed25519", "public_key": "%s"}'
_CHECKS: Final = (',\n "checks": "', '"')
_SEAL: Final = ',\n "seal": "%s"'
_SIGNATURE: Final = ',\n "signature": "%s"'
_END: Final = "\n}\n"
_SIGNER_SIZE: Final = len(_SIGNER % ("0" * 64))
_CHECKS_SIZE: Final = sum(map(len, _CHECKS))
_SEAL_SIZE: Final = len(_SEAL % ("0" * 64))
# The line itself begins behind the comma and the line break.
_BEFORE_LINE: Final = 2
_SIGNER_LINE: Final = re.compile(_SIGNER.replace("{", r"\{").replace("}", r"\}") % "([0-9a-f]{64})")
_LAST_LINES: Final = re.compile(
    _SEAL % "(?P<seal>[0-9a-f]{64})"
    + "(?:" + _SIGNATURE % "(?P<signature>[0-9a-f]{128})" + ")?"
    + _END.replace("}", r"\}")
)  # fmt: skip
_LAST_SIZE_MAX: Final = _SEAL_SIZE + len(_SIGNATURE % ("0" * 128)) + len(_END)

Signed = Literal["unsigned", "unchecked", "own", "trusted"]


@dataclass(frozen=True, slots=True)
class Seal:
    """The seal of a document whose bytes agree with it.

    Attributes:
        digest: SHA-256, 32 bytes.
        signer: the public key that the document names, 32 bytes; None when it is not signed.
        state: "unsigned"; "unchecked": signed, but without the package cryptography nobody can say more;
            "own": signed by the key that the document itself names; "trusted": by the key that was asked for.
    """

    digest: bytes
    signer: bytes | None
    state: Signed

    def __str__(self) -> str:
        key = "" if self.signer is None else self.signer.hex()
        return {
            "unsigned": "sealed, not signed",
            "unchecked": f"signed by {key}, not checked: the package cryptography is not installed",
            "own": f"signed by {key}, not checked against a key of yours",
            "trusted": f"signed by {key}, the key that was asked for",
        }[self.state]


# ------------------------------------------------------------ keys


class Signer:
    """A private key.  Made by ``load_signer``.

    Attributes:
        public_key: 32 bytes.
    """

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public_key = key.public_key().public_bytes_raw()

    def sign(self, seal: bytes) -> bytes:
        """The signature of a seal's 32 bytes, 64 bytes."""
        return self._key.sign(SIGNED_PREFIX + seal)


class Verifier:
    """A public key.  Made by ``load_verifier``, or from a key's 32 bytes.

    Raises:
        MissingPackageError: cryptography is not installed.
        ValueError: these bytes are no key.
    """

    def __init__(self, public_key: bytes) -> None:
        _need_cryptography()
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        self.public_key = public_key
        self._key = Ed25519PublicKey.from_public_bytes(public_key)

    def has_signed(self, seal: bytes, signature: bytes) -> bool:
        """Whether this key's owner signed a seal's 32 bytes."""
        from cryptography.exceptions import InvalidSignature

        try:
            self._key.verify(signature, SIGNED_PREFIX + seal)
        except InvalidSignature:
            return False
        return True


def load_signer(path: str | os.PathLike[str]) -> Signer:
    """The private key in the file ``path``: PEM (PKCS 8) or OpenSSH's own form.

    An encrypted one takes its pass phrase from the environment variable ``VHDTOOL_KEY_PASSWORD``.

    Raises:
        MissingPackageError: cryptography is not installed.
        FileMissingError, ReadError: the file cannot be read.
        KeyFileError: it is no such key, of another kind, or its pass phrase is wrong or missing.
    """
    _need_cryptography()
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    name, data = _key_file(path)
    if b"PRIVATE KEY-----" not in data:
        what = "a public key" if _is_public(data) else "no key that can be read"
        raise KeyFileError(f"{name} is {what}: signing takes a private key, as PEM or in OpenSSH's form")
    is_ssh = b"-----BEGIN OPENSSH PRIVATE KEY-----" in data
    load: Any = serialization.load_ssh_private_key if is_ssh else serialization.load_pem_private_key
    key = _loaded(name, lambda password: load(data, password))
    if not isinstance(key, Ed25519PrivateKey):
        raise _other_kind(name, key)
    return Signer(key)


def load_verifier(path: str | os.PathLike[str]) -> Verifier:
    """The public key in the file ``path``: PEM, or a line as OpenSSH has it.

    Raises:
        MissingPackageError, FileMissingError, ReadError, KeyFileError: as ``load_signer``.
    """
    _need_cryptography()
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    name, data = _key_file(path)
    if b"PRIVATE KEY-----" in data:
        raise KeyFileError(f"{name} is a private key: checking takes the public half of it, and no secret")
    if not _is_public(data):
        raise KeyFileError(f"{name} is no key that can be read: a public key as PEM or OpenSSH's is needed")
    is_pem = data.lstrip().startswith(b"-----BEGIN")
    load = serialization.load_pem_public_key if is_pem else serialization.load_ssh_public_key
    key = _loaded(name, lambda password: load(data))
    if not isinstance(key, Ed25519PublicKey):
        raise _other_kind(name, key)
    return Verifier(key.public_bytes_raw())


def _need_cryptography() -> None:
    try:
        import cryptography.hazmat.primitives.asymmetric.ed25519  # noqa: F401
    except ImportError as error:
        raise MissingPackageError(
            "signatures need the package cryptography (the extra 'sign': pip install 'vhdtool[sign]')"
        ) from error


def _key_file(path: str | os.PathLike[str]) -> tuple[str, bytes]:
    with FileSource(path) as source:
        name = printable(source.name)
        if source.size > _KEY_BYTES_MAX:
            raise KeyFileError(f"{name} is no key: it has {source.size} bytes")
        return name, source.read_exact(0, source.size, field="key")


def _is_public(data: bytes) -> bool:
    return b"-----BEGIN PUBLIC KEY-----" in data or re.match(rb"\s*(ssh|ecdsa|sk)-", data) is not None


def _loaded(name: str, load: Callable[[bytes | None], object]) -> object:
    """What ``load`` makes of a pass phrase: first of none, then of the one in the environment.

    The library's own messages may quote what it read; ours do not.
    """
    from cryptography.exceptions import UnsupportedAlgorithm

    password = os.environ.get(PASSWORD_VARIABLE)
    try:
        try:
            return load(None)
        except TypeError:  # it is encrypted
            if password is None:
                raise KeyFileError(
                    f"{name} is encrypted: its pass phrase is taken from the variable {PASSWORD_VARIABLE}"
                ) from None
            return load(os.fsencode(password))
    except UnsupportedAlgorithm as error:
        raise KeyFileError(
            f"{name} cannot be read: the package cryptography does not know this kind of key or encryption "
            "(encrypted OpenSSH keys need the package bcrypt, too)"
        ) from error
    except (ValueError, TypeError) as error:
        reason = "its pass phrase is wrong, or it is damaged" if password is not None else "it is damaged"
        raise KeyFileError(f"{name} cannot be read as a key: {reason}") from error


def _other_kind(name: str, key: object) -> KeyFileError:
    kind = type(key).__name__.removeprefix("_").removesuffix("PrivateKey").removesuffix("PublicKey")
    return KeyFileError(f"{name} is a key of another kind ({kind}): an ed25519 key is needed")


# ------------------------------------------------------------ writing


class SealedWriter:
    """Takes a JSON object in pieces, up to its last member but one's value, and closes it with its seal.

    Args:
        put: takes the bytes of the document in order.
    """

    def __init__(self, put: Callable[[bytes], None]) -> None:
        self._put = put
        self._digest = hashlib.sha256()
        self._checks = _Checks()

    def write(self, piece: bytes) -> None:
        """The next bytes; in the end an object without the comma or the brace behind its last member."""
        self._put(piece)
        self._digest.update(piece)
        self._checks.add(piece)

    def seal(self, signer: Signer | None = None) -> bytes:
        """Write what closes the document; its seal, 32 bytes."""
        if signer is not None:
            self.write((_SIGNER % signer.public_key.hex()).encode("ascii"))
        # A line's checks do not cover itself: they are of what stands in front of its comma.
        checks = self._checks.finish()
        self._hash_and_put(_CHECKS[0].encode("ascii"))
        for first in range(0, len(checks), _CHECKS_AT_ONCE):
            self._hash_and_put(_hexadecimal(checks[first : first + _CHECKS_AT_ONCE]))
        self._hash_and_put(_CHECKS[1].encode("ascii"))
        digest = self._digest.copy()
        digest.update(_SEAL[:_BEFORE_LINE].encode("ascii"))
        seal = digest.digest()
        self._put((_SEAL % seal.hex()).encode("ascii"))
        if signer is not None:
            self._put((_SIGNATURE % signer.sign(seal).hex()).encode("ascii"))
        self._put(_END.encode("ascii"))
        return seal

    def _hash_and_put(self, piece: bytes) -> None:
        self._digest.update(piece)
        self._put(piece)


_CHECKS_AT_ONCE: Final = 1 << 12


class _Checks:
    """CRC-32 of each ``CHECKED_PIECE`` of a stream, one after the other."""

    def __init__(self) -> None:
        self._values = array("I")
        self._value = 0
        self._within = 0

    def add(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        while len(view):
            part = view[: CHECKED_PIECE - self._within]
            self._value = zlib.crc32(part, self._value)
            self._within += len(part)
            if self._within == CHECKED_PIECE:
                self._close()
            view = view[len(part) :]

    def finish(self) -> array[int]:
        if self._within:
            self._close()
        return self._values

    def _close(self) -> None:
        self._values.append(self._value)
        self._value = self._within = 0


def _hexadecimal(checks: array[int]) -> bytes:
    return b"".join(b"%08x" % value for value in checks)


# ------------------------------------------------------------ reading


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where the closing lines of a sealed document stand, in bytes from its start.

    ``body`` is how much the checks are of; ``checks``, ``seal`` are where those lines' commas stand.
    """

    body: int
    check_count: int
    seal: int
    digest: bytes
    signature: bytes | None
    signature_at: int


def check_sealed(source: ByteSource, log: FindingLog, verifier: Verifier | None = None) -> Seal:
    """Check the seal and the signature of the document in ``source``, in bounded memory.

    Args:
        log: what findings are made with.
        verifier: the key by which it must be signed; None takes any, or none.

    Raises:
        CorruptError: ``manifest.seal``: it has none, or its bytes are not those that were sealed, with
            the place; ``manifest.signature``: the signature is wrong, missing, or another's.
        ReadError: it cannot be read.
    """
    layout = find_seal(source)
    if layout is None:
        refuse_unsealed(source, log)
    signer = _signer(source, layout)
    if _digest_of(source, _pieces(source, 0, layout.seal + _BEFORE_LINE)) != layout.digest:
        _refuse_broken(source, log, layout)
    if signer is None and layout.signature is None:
        if verifier is not None:
            log.refuse("manifest.signature", "this is not signed", expected=verifier.public_key.hex())
        return Seal(layout.digest, None, "unsigned")
    return _checked_signature(log, layout, signer, verifier)


def refuse_unsealed(source: ByteSource, log: FindingLog) -> NoReturn:
    """Refuse a document that does not end in the lines of a seal."""
    log.refuse(
        "manifest.seal",
        "it does not end in the lines of a seal",
        offset=max(0, source.size - _LAST_SIZE_MAX),
        field="seal",
    )


def find_seal(source: ByteSource) -> _Layout | None:
    """Where the closing lines stand; None where the document does not end in them."""
    if source.size > DOCUMENT_SIZE_MAX:
        return None
    start = max(0, source.size - _LAST_SIZE_MAX)
    tail = _text(source, start, source.size)
    match = _LAST_LINES.search(tail)
    if match is None or match.end() != len(tail):
        return None
    seal = start + match.start()
    # The checks are as long as what they are of says: one text of 8 for each piece.
    rest = seal - _CHECKS_SIZE
    count = -(-rest // (CHECKED_PIECE + 8))
    body = rest - 8 * count
    if body <= 0 or -(-body // CHECKED_PIECE) != count:
        return None
    signature = match["signature"]
    return _Layout(
        body,
        count,
        seal,
        bytes.fromhex(match["seal"]),
        None if signature is None else bytes.fromhex(signature),
        seal + _SEAL_SIZE,
    )


def _signer(source: ByteSource, layout: _Layout) -> bytes | None:
    line = _text(source, max(0, layout.body - _SIGNER_SIZE), layout.body)
    match = _SIGNER_LINE.fullmatch(line)
    return None if match is None else bytes.fromhex(match[1])


def _checked_signature(
    log: FindingLog, layout: _Layout, signer: bytes | None, verifier: Verifier | None
) -> Seal:
    place = {"offset": layout.signature_at + _BEFORE_LINE, "field": "signature"}
    if signer is None or layout.signature is None:
        missing = "signer" if signer is None else "signature"
        _refuse_signature(log, f"it is signed, and its {missing} is missing", place)
    if verifier is not None and verifier.public_key != signer:
        place |= {"found": signer.hex(), "expected": verifier.public_key.hex()}
        _refuse_signature(log, "it is signed by another key", place)
    state: Signed = "own" if verifier is None else "trusted"
    try:
        checker = verifier or Verifier(signer)
    except MissingPackageError:
        return Seal(layout.digest, signer, "unchecked")
    except ValueError:
        _refuse_signature(log, "its signer's key is none", place)
    if not checker.has_signed(layout.digest, layout.signature):
        _refuse_signature(log, "the signature is not that of its signer for this seal", place)
    return Seal(layout.digest, signer, state)


def _refuse_signature(log: FindingLog, what: str, place: dict[str, Any]) -> NoReturn:
    log.refuse("manifest.signature", what, **place)


def _text(source: ByteSource, start: int, stop: int) -> str:
    # Latin-1 keeps bytes and characters in step, whatever they are.
    return source.read_exact(start, stop - start, field="seal").decode("latin-1")


def _pieces(source: ByteSource, start: int, stop: int) -> Iterator[bytes]:
    for at in range(start, stop, CHECKED_PIECE):
        yield source.read_exact(at, min(CHECKED_PIECE, stop - at), field="manifest")


def _digest_of(source: ByteSource, pieces: Iterator[bytes]) -> bytes:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.digest()


# ------------------------------------------------------------ where damage is


def _refuse_broken(source: ByteSource, log: FindingLog, layout: _Layout) -> NoReturn:
    """Say where a document is not what was sealed: the byte, the piece, or the line at its end."""
    stored_at = layout.body + len(_CHECKS[0])
    wrong: list[tuple[int, int]] = []
    for number, piece in enumerate(_pieces(source, 0, layout.body)):
        stored = _stored_check(source, stored_at + 8 * number)
        difference = None if stored is None else stored ^ zlib.crc32(piece)
        if difference is None or difference:
            wrong.append((number, difference or 0))
            if len(wrong) > 1:
                break
    if not wrong:
        _refuse_tail(source, log, layout)
    number, difference = wrong[0]
    start = number * CHECKED_PIECE
    length = min(CHECKED_PIECE, layout.body - start)
    if len(wrong) == 1:
        if _is_sealed_with(source, layout, None):
            log.refuse("manifest.seal", _WHAT, offset=stored_at + 8 * number, field="checks")
        change = _changed_byte(difference, length)
        if change is not None and _is_sealed_with(source, layout, (start + change[0], change[1])):
            _refuse_byte(source, log, start + change[0], change[1])
    log.refuse("manifest.seal", _WHAT, offset=start, found=f"damage in the {length} bytes from there on")


_WHAT: Final = "this is not what was sealed"


def _refuse_byte(source: ByteSource, log: FindingLog, at: int, bits: int) -> NoReturn:
    byte = source.read_exact(at, 1, field="manifest")[0]
    what = f"{_WHAT}: one byte was changed"
    log.refuse("manifest.seal", what, offset=at, found=byte, expected=byte ^ bits)


def _refuse_tail(source: ByteSource, log: FindingLog, layout: _Layout) -> NoReturn:
    """All that is checked is right: the line of checks itself, or the seal, is not."""
    for at in (layout.body, layout.seal - len(_CHECKS[1])):
        expected = _CHECKS[0] if at == layout.body else _CHECKS[1]
        if _text(source, at, at + len(expected)) != expected:
            log.refuse("manifest.seal", _WHAT, offset=at, field="checks")
    log.refuse("manifest.seal", _WHAT, offset=layout.seal + _BEFORE_LINE, field="seal")


def _stored_check(source: ByteSource, at: int) -> int | None:
    text = _text(source, at, at + 8)
    return int(text, 16) if re.fullmatch("[0-9a-f]{8}", text) else None


def _is_sealed_with(source: ByteSource, layout: _Layout, change: tuple[int, int] | None) -> bool:
    """Whether the seal is right for the checks that belong to the body, and bits of one byte turned."""
    digest = hashlib.sha256()
    checks = _Checks()
    at, bits = change or (-1, 0)
    for number, piece in enumerate(_pieces(source, 0, layout.body)):
        if at // CHECKED_PIECE == number:
            repaired = bytearray(piece)
            repaired[at % CHECKED_PIECE] ^= bits
            piece = bytes(repaired)
        digest.update(piece)
        checks.add(piece)
    line = _CHECKS[0].encode("ascii") + _hexadecimal(checks.finish()) + _CHECKS[1].encode("ascii")
    digest.update(line + _SEAL[:_BEFORE_LINE].encode("ascii"))
    return digest.digest() == layout.digest


def _changed_byte(difference: int, length: int) -> tuple[int, int] | None:
    """The one byte of ``length`` bytes that changes their CRC-32 by ``difference``, and its flipped bits.

    None when no single one does.  A CRC is linear, and each byte that follows a changed one moves the
    difference on in a way that can be undone: going back, it becomes that of a last byte.
    """
    table = {_of_last_byte(bits): bits for bits in range(1, 256)}
    # The top bytes of these are all different: they tell which one was added.
    by_top = {value >> 24: (value, bits) for value, bits in table.items()} | {0: (0, 0)}
    for back in range(length):
        if difference in table:
            return length - 1 - back, table[difference]
        value, low = by_top[difference >> 24]
        difference = ((difference ^ value) << 8 | low) & 0xFFFFFFFF
    return None


def _of_last_byte(bits: int) -> int:
    """By how much a CRC-32 changes with the bits of the last byte."""
    value = bits
    for _ in range(8):
        value = value >> 1 ^ (_POLYNOMIAL if value & 1 else 0)
    return value


def sealed_text(document: dict[str, Any], signer: Signer | None = None) -> bytes:
    """A small ``document`` as sealed text, a member a line."""
    pieces: list[bytes] = []
    writer = SealedWriter(pieces.append)
    lines = (f"\n {json.dumps(name)}: {json.dumps(value)}" for name, value in document.items())
    writer.write(("{" + ",".join(lines)).encode("ascii"))
    writer.seal(signer)
    return b"".join(pieces)
