"""The parent locator: what a differencing disk records of its parent.

Its strings come from whoever made the file.  Nothing here follows them; what must not be followed (a
device, a "relative" path that is none) leaves this module as a bare file name at most.
"""

from __future__ import annotations

import re
from codecs import utf_16_le_decode
from typing import Final, NamedTuple

from vhdtool.errors import FindingLog, Severity
from vhdtool.formats.image import Section
from vhdtool.formats.vhdx import layout
from vhdtool.model.identity import Identity, ParentLink, ParentPath, PathKind, base_name

# OpenVMM's limit; the specification defines five keys.
_KEY_COUNT_MAX: Final = 256
_GUID: Final = re.compile(r"\{?([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})\}?", re.IGNORECASE)
_DEVICE: Final = re.compile(r"\\\\\.\\|\\\?\?\\|\\\\\?\\GLOBALROOT(\\|$)|\\Device\\", re.IGNORECASE)
_NOT_RELATIVE: Final = re.compile(r"\\|[a-z]:", re.IGNORECASE)
_LINKAGES: Final = ("parent_linkage", "parent_linkage2")
# The order in which they are to be tried offline.
_PATHS: Final = (
    ("relative_path", PathKind.RELATIVE_PATH),
    ("volume_path", PathKind.VOLUME_PATH),
    ("absolute_win32_path", PathKind.ABSOLUTE_PATH),
)


class ParentLocator(NamedTuple):
    """A decoded locator: the link, and all its keys for people to look at.

    ``kind`` is its LocatorType, empty where there is none.
    """

    link: ParentLink
    offset: int
    kind: bytes
    values: dict[str, str]

    @property
    def section(self) -> Section:
        """The locator for people to look at."""
        kind = str(Identity(self.kind)) if self.kind else ""
        head = (("LocatorType", kind), ("KeyValueCount", len(self.values)))
        return Section("Parent Locator", self.offset, (*head, *self.values.items()))


def decode_locator(item: bytes, offset: int, log: FindingLog) -> ParentLocator:
    """The link that a parent locator item holds.

    What is wrong is noted in ``log``; a link without identities is one that no parent can satisfy.

    Args:
        item: all bytes of the metadata item.
        offset: where it stands in the file.
    """
    if len(item) < layout.LOCATOR_HEADER_SIZE:
        _note_keys(log, Severity.ERROR, "the parent locator is cut short", offset, f"{len(item)} bytes")
        return ParentLocator(ParentLink((), ()), offset, b"", {})
    head = layout.parse_parent_locator_header(item)
    if head.locator_type != layout.VHDX_LOCATOR_TYPE:
        log.note(
            Severity.ERROR,
            "vhdx.parent.type",
            "the parent is not a VHDX",
            offset=offset,
            field="parent_locator.LocatorType",
            found=str(Identity(head.locator_type)),
            expected=str(Identity(layout.VHDX_LOCATOR_TYPE)),
        )
    room = (len(item) - layout.LOCATOR_HEADER_SIZE) // layout.LOCATOR_ENTRY_SIZE
    if head.key_value_count > min(room, _KEY_COUNT_MAX):
        _note_keys(
            log,
            Severity.ERROR,
            "the parent locator has more entries than it can hold",
            offset + 18,
            str(head.key_value_count),
            f"at most {min(room, _KEY_COUNT_MAX)}",
        )
        return ParentLocator(ParentLink((), ()), offset, head.locator_type, {})
    values = _decode_entries(item, head.key_value_count, offset, log)
    link = ParentLink(_identities(values, offset, log), _paths(values, offset, log))
    return ParentLocator(link, offset, head.locator_type, values)


def _decode_entries(item: bytes, count: int, offset: int, log: FindingLog) -> dict[str, str]:
    values: dict[str, str] = {}
    for i in range(count):
        at = layout.LOCATOR_HEADER_SIZE + i * layout.LOCATOR_ENTRY_SIZE
        entry = layout.parse_parent_locator_entry(item, at)
        key = _text(item, entry.key_offset, entry.key_length)
        value = _text(item, entry.value_offset, entry.value_length)
        if key is not None and value is not None and key not in values:
            values[key] = value
            continue
        severity = Severity.ERROR if key == "parent_linkage" else Severity.WARNING
        code = "vhdx.parent.linkage" if key == "parent_linkage" else "vhdx.parent.keys"
        if key is None or value is None:
            fault = "key" if key is None else f"value of {key}"
            log.note(
                severity,
                code,
                f"a {fault} in the parent locator is no text",
                offset=offset + at,
                field=f"parent_locator.Entry {i}",
                expected="UTF-16 within the item, not empty, without NUL",
            )
        else:
            log.note(
                severity,
                code,
                f"key {key} stands in the parent locator twice",
                offset=offset + at,
                field=f"parent_locator.{key}",
                found=value,
                expected=values[key],
            )
    return values


def _text(item: bytes, offset: int, length: int) -> str | None:
    """A key or value, None where there is none: outside the item, empty, odd, with NULs, no UTF-16."""
    if not length or length % 2 or not offset or offset + length > len(item):
        return None
    try:
        text, _ = utf_16_le_decode(item[offset : offset + length], "strict", True)
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else text


def _identities(values: dict[str, str], offset: int, log: FindingLog) -> tuple[Identity, ...]:
    found: list[Identity] = []
    for key in _LINKAGES:
        text = values.get(key)
        match = _GUID.fullmatch(text) if text is not None else None
        if match:
            identity = _identity(match[1])
            if key == "parent_linkage":
                found.append(identity)
            elif not identity.is_null:
                log.note(
                    Severity.WARNING,
                    "vhdx.parent.linkage2",
                    "a second identity of the parent is recorded: was a merge interrupted?",
                    offset=offset,
                    field=f"parent_locator.{key}",
                    found=str(identity),
                    expected="none, or zeros",
                )
                found.append(identity)
        elif key == "parent_linkage":
            log.note(
                Severity.ERROR,
                "vhdx.parent.linkage",
                "the parent's identity is not recorded",
                offset=offset,
                field=f"parent_locator.{key}",
                found=text if text is not None else "no such key",
                expected="a GUID in braces",
            )
        elif text is not None:
            _note_keys(log, Severity.WARNING, f"{key} is no GUID", offset, text, "a GUID in braces")
    return tuple(found)


def _identity(guid: str) -> Identity:
    """``Identity.of_uuid(UUID(guid))``, in a third of its time."""
    raw = bytes.fromhex(guid.replace("-", ""))
    return Identity(raw[3::-1] + raw[5:3:-1] + raw[7:5:-1] + raw[8:])


def _paths(values: dict[str, str], offset: int, log: FindingLog) -> tuple[ParentPath, ...]:
    found: list[ParentPath] = []
    for key, kind in _PATHS:
        path = values.get(key)
        if path is None:
            continue
        windows = path.replace("/", "\\")
        fault = ""
        if _DEVICE.match(windows):
            fault = "names a device and is never followed"
        elif kind is PathKind.RELATIVE_PATH and _NOT_RELATIVE.match(windows):
            fault = "is not relative; only its file name counts"
        if not fault:
            found.append(ParentPath(kind, path, key))
            continue
        log.note(
            Severity.WARNING,
            "vhdx.parent.path",
            f"{key} {fault}",
            offset=offset,
            field=f"parent_locator.{key}",
            found=path,
        )
        name = base_name(path).rsplit(":", 1)[-1]
        if name.strip(". ?*"):
            found.append(ParentPath(PathKind.NAME, name, key))
    if not found:
        _note_keys(log, Severity.WARNING, "the parent locator names no file", offset, "", "a path")
    return tuple(found)


def _note_keys(
    log: FindingLog, severity: Severity, what: str, offset: int, found: str, expected: str = ""
) -> None:
    log.note(
        severity,
        "vhdx.parent.keys",
        what,
        offset=offset,
        field="parent_locator",
        found=found,
        expected=expected,
    )
