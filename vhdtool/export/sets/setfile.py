"""The manifest of a set: ``DEST/vhdtool-set.json``, which images belong together; written last, sealed.

::

    {
     "set_version": 1,
     "vhdtool_version": "0.1.0",
     "started": "2026-01-31T12:00:00Z", "finished": ...,          ISO 8601, UTC
     "case": {"case", "examiner", "evidence", "note"},            what was given of it
     "layout": "increments",                        or "images"
     "folders": ["/srv/vms"],                       what the tree was made of
     "images": [
      {"path": "base.vhdx", "parent": null,         file names in the set's folder, parents first
       "manifest": "base.vhdx.manifest.json", "manifest_seal": "9f86...", "root": "60303a...",
       "point_in_time": "/srv/vms/base.vhdx",       the image whose disk it is
       "duplicates": ["/srv/vms/copy.vhdx"],        images with the very same disk
       "format": "vhdx", "virtual_size": 1073741824, "file_size": 8388608, "disk_id": ..., "write_id": ...},
      ...
     ],
     "skipped": [{"path", "reason", "code"}],       images of the tree whose disk could not be exported
     "signer", "checks", "seal", "signature"        see seal.py
    }

A set is read as a stranger's: the names in it are names of files in its own folder, and nothing else.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from vhdtool.errors import EXIT_UNSUPPORTED, CorruptError, FileMissingError, FindingLog, printable
from vhdtool.export.containers.target import TargetFile
from vhdtool.export.proof.records import FILE_SIZE_MAX, SIZE_MAX
from vhdtool.export.proof.scanner import Claims, Scanner
from vhdtool.export.proof.seal import SealedWriter, Signer, Verifier, check_sealed
from vhdtool.export.sets.points import Skipped
from vhdtool.source import FileSource

SET_VERSION: Final = 1
SET_NAME: Final = "vhdtool-set.json"
LAYOUTS: Final = ("increments", "images")
# More images than any tree has; a set names each with a few hundred bytes.
IMAGES_MAX: Final = 1 << 20
_HASH: Final = "[0-9a-f]{64}"
_NAME: Final = r"(?!\.{1,2}$)[^/\\\0]+"
_SHORT: Final = frozenset(
    {
        "set_version",
        "vhdtool_version",
        "started",
        "finished",
        "case",
        "layout",
        "folders",
        "signer",
        "seal",
        "signature",
    }
)


@dataclass(frozen=True, slots=True)
class SetImage:
    """One image of a set.

    Attributes:
        name: of its file in the set's folder.
        parent: the name of the image that it is an increment on, or that it was begun as a clone of.
        manifest: the name of its manifest, and ``manifest_seal`` that manifest's seal in hexadecimal.
        root: over its chunks, as in its manifest.
        point_in_time: the image whose disk it is.
        duplicates: images with the very same disk.
        format: of the file; ``virtual_size`` and ``file_size`` are bytes.
        disk_id, write_id: None for a raw disk.
    """

    name: str
    parent: str | None
    manifest: str
    manifest_seal: str
    root: str
    point_in_time: str
    duplicates: tuple[str, ...]
    format: str
    virtual_size: int
    file_size: int
    disk_id: str | None
    write_id: str | None

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "path": self.name,
            "parent": self.parent,
            "manifest": self.manifest,
            "manifest_seal": self.manifest_seal,
            "root": self.root,
            "point_in_time": self.point_in_time,
            "duplicates": list(self.duplicates),
            "format": self.format,
            "virtual_size": self.virtual_size,
            "file_size": self.file_size,
            "disk_id": self.disk_id,
            "write_id": self.write_id,
        }

    @classmethod
    def read(cls, values: object, log: FindingLog, number: int) -> Self:
        """From JSON."""
        claims = Claims(values, log, f"images[{number}]")
        return cls(
            name=claims.text("path", _NAME),
            parent=claims.text_or_none("parent", _NAME),
            manifest=claims.text("manifest", _NAME),
            manifest_seal=claims.text("manifest_seal", _HASH),
            root=claims.text("root", _HASH),
            point_in_time=claims.text("point_in_time"),
            duplicates=_texts(values, "duplicates"),
            format=claims.text("format", "raw|vhdx?"),
            virtual_size=claims.integer("virtual_size", 1, SIZE_MAX),
            file_size=claims.integer("file_size", 1, FILE_SIZE_MAX),
            disk_id=claims.text_or_none("disk_id"),
            write_id=claims.text_or_none("write_id"),
        )


def write_set(
    target: TargetFile,
    *,
    head: Mapping[str, Any],
    images: Sequence[SetImage],
    skipped: Sequence[Skipped],
    signer: Signer | None = None,
) -> bytes:
    """Write a set's manifest to ``target`` and finish it; its seal.  Publishing is the caller's.

    Args:
        head: what stands in front of the images, all of it but the version.
    """
    position = 0

    def put(piece: bytes) -> None:
        nonlocal position
        target.write_at(position, piece)
        position += len(piece)

    writer = SealedWriter(put)
    values = {"set_version": SET_VERSION, **head}
    lines = ",".join(f"\n {json.dumps(name)}: {json.dumps(value)}" for name, value in values.items())
    writer.write(b"{" + lines.encode("ascii"))
    for name, rows in (
        ("images", (image.document() for image in images)),
        ("skipped", ({"path": str(s.path), "reason": s.reason, "code": s.code} for s in skipped)),
    ):
        writer.write(f',\n "{name}": ['.encode("ascii"))
        for number, row in enumerate(rows):
            writer.write(("," if number else "").encode() + b"\n  " + json.dumps(row).encode("ascii"))
        writer.write(b"\n ]")
    seal = writer.seal(signer)
    target.finish(position)
    return seal


class SetManifest:
    """The manifest of a set, read and checked from end to end.

    Args:
        folder: the set's.
        key: whose signature it must carry; None takes any, or none.

    Attributes:
        seal: what its seal and its signature prove.
        layout: "increments" or "images".
        images: in the order in which they were made, each parent in front of its children.
        skipped: paths of images that were not exported.
        values: what else is short, as written.

    Raises:
        FileMissingError, ReadError: it cannot be read.
        FormatError: ``manifest.*``: it is cut, forged, or of a kind that is not known.
    """

    def __init__(self, folder: str | os.PathLike[str], *, key: Verifier | None = None) -> None:
        self.folder = Path(folder)
        self.path = self.folder / SET_NAME
        self._log = FindingLog(str(self.path))
        self.images: list[SetImage] = []
        self.skipped: list[str] = []
        self.values: dict[str, Any] = {}
        with _open(self.path) as source:
            self.seal = check_sealed(source, self._log, key)
            self._read(Scanner(source, self._log))
        claims = Claims(self.values, self._log, "")
        if self.values.get("set_version") != SET_VERSION:
            self._log.refuse(
                "manifest.version",
                "this manifest is of another version",
                found=str(self.values.get("set_version"))[:100],
                expected=str(SET_VERSION),
                exit_code=EXIT_UNSUPPORTED,
            )
        self.layout = claims.text("layout", "|".join(LAYOUTS))
        self._check_images()

    def _read(self, scanner: Scanner) -> None:
        seen: set[str] = set()
        for name in scanner.members():
            if name in seen:
                self._log.refuse("manifest.duplicate", f"{name!r} stands there twice")
            seen.add(name)
            if name == "images":
                self._read_images(scanner.rows())
            elif name == "skipped":
                self.skipped.extend(
                    Claims(row, self._log, f"skipped[{number}]").text("path")
                    for number, row in enumerate(scanner.rows())
                )
            elif name in _SHORT:
                self.values[name] = scanner.value()
            else:
                scanner.skip()
        scanner.end()

    def _read_images(self, rows: Iterator[object]) -> None:
        for number, row in enumerate(rows):
            if number == IMAGES_MAX:
                self._log.refuse("manifest.images", f"more than {IMAGES_MAX} images, which no tree has")
            self.images.append(SetImage.read(row, self._log, number))

    def _check_images(self) -> None:
        """Each name once, and each parent in front of its children."""
        known: set[str] = set()
        for image in self.images:
            if image.name in known:
                self._log.refuse("manifest.images", f"two images are called {image.name!r}")
            if image.parent is not None and image.parent not in known:
                self._log.refuse(
                    "manifest.images", f"the parent of {image.name!r} does not stand in front of it"
                )
            known.add(image.name)


def _open(path: Path) -> FileSource:
    try:
        return FileSource(path)
    except (FileMissingError, CorruptError) as error:
        raise FileMissingError(f"no set of exports: {printable(str(path))}") from error


def _texts(values: object, name: str) -> tuple[str, ...]:
    """A list of texts; what is none is left out."""
    found = values.get(name) if isinstance(values, dict) else None
    return tuple(text for text in found if isinstance(text, str)) if isinstance(found, list) else ()
