"""The small objects of a manifest, as a stranger claims them: checked member by member, unknown ones dropped.

``case``: what an examiner notes; texts ``case``, ``examiner``, ``evidence``, ``note``, what was given of it.

``target``: the file that an export made.  ``path`` as it was given; ``format``; ``subformat``;
``virtual_size``; ``file_size``; ``block_size`` (0 when it has no blocks); ``logical_sector_size``;
``disk_id``, ``write_id`` and ``structure`` (what the file holds besides guest data, see structure.py), null
where a format has none.

``base``: the image that is an increment's parent.  ``path`` relative to the manifest's folder, with "/"
between names; ``format``, ``virtual_size``, ``disk_id``, ``write_id``; ``point_in_time`` whose disk it holds;
``root`` of its manifest, or null; ``differences``: "metadata" when the increment holds all that could differ,
"content" when what is equal was left out.

``layers``: the files that were read: ``path``, ``size``, ``mtime`` (null for what was no file), ``write_id``.
"""

from __future__ import annotations

from typing import Any, Final

from vhdtool.errors import EXIT_UNSUPPORTED, FindingLog
from vhdtool.export.proof.scanner import Claims

FORMATS: Final = ("raw", "vhd", "vhdx", "raw.zst", "e01")
# The largest disk of any format, and what a file around it can take.
SIZE_MAX: Final = 64 << 40
FILE_SIZE_MAX: Final = 1 << 62
_IDENTITY: Final = "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_HASH: Final = "[0-9a-f]{64}"
_STRUCTURE: Final = rf"{_HASH}(\.([0-9a-f]{{16}}){{1,64}})?"

Record = dict[str, Any]


def read_case(values: object, log: FindingLog) -> Record:
    """``case``."""
    claims = Claims(values, log, "case")
    names = ("case", "examiner", "evidence", "note")
    return {name: claims.text(name) for name in names if name in claims}


def read_target(values: object, log: FindingLog) -> Record:
    """``target``."""
    claims = Claims(values, log, "target")
    known = claims.text("format")
    if known not in FORMATS:
        log.refuse(
            "manifest.format",
            "an unknown target format",
            field="target.format",
            found=known[:100],
            expected=", ".join(FORMATS),
            exit_code=EXIT_UNSUPPORTED,
        )
    structure = claims.text if known in ("vhd", "vhdx") else claims.text_or_none
    return {
        "path": claims.text("path"),
        "format": known,
        "subformat": claims.text("subformat", "fixed|dynamic|differencing"),
        "virtual_size": claims.integer("virtual_size", 1, SIZE_MAX),
        "file_size": claims.integer("file_size", 1, FILE_SIZE_MAX),
        "block_size": claims.integer("block_size", 0, 1 << 32),
        "logical_sector_size": claims.integer("logical_sector_size", 512, 4096),
        "disk_id": claims.text_or_none("disk_id", _IDENTITY),
        "write_id": claims.text_or_none("write_id", _IDENTITY),
        "structure": structure("structure", _STRUCTURE),
    }


def read_base(values: object, log: FindingLog) -> Record:
    """``base``."""
    claims = Claims(values, log, "base")
    return {
        "path": claims.text("path"),
        "format": claims.text("format", "vhdx?"),
        "virtual_size": claims.integer("virtual_size", 1, SIZE_MAX),
        "disk_id": claims.text_or_none("disk_id", _IDENTITY),
        "write_id": claims.text_or_none("write_id", _IDENTITY),
        "point_in_time": claims.text("point_in_time"),
        "root": claims.text_or_none("root", _HASH),
        "differences": claims.text("differences", "metadata|content"),
    }


def read_layer(values: object, log: FindingLog, number: int) -> Record:
    """One of ``layers``."""
    claims = Claims(values, log, f"layers[{number}]")
    return {
        "path": claims.text("path"),
        "size": claims.integer("size", 0, FILE_SIZE_MAX),
        "mtime": claims.text_or_none("mtime"),
        "write_id": claims.text_or_none("write_id", _IDENTITY),
    }
