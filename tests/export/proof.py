"""Manifests for images that were made some other way, put together from the pieces that an export uses."""

from __future__ import annotations

import hashlib
from contextlib import closing
from pathlib import Path
from typing import Any

from vhdtool.chain.flatten import resolve
from vhdtool.export.containers.target import TargetFile
from vhdtool.export.moving.copy import Mover
from vhdtool.export.moving.progress import Reporter
from vhdtool.export.proof.digest import ChunkDigester
from vhdtool.export.proof.manifest import ChunkRecord, DamageRecord, manifest_path, write_manifest
from vhdtool.export.proof.structure import structure_digest
from vhdtool.formats.image import DiskImage
from vhdtool.formats.registry import open_image
from vhdtool.model.plan import merged
from vhdtool.source import FileSource

WHEN = "2026-01-01T00:00:00Z"


def proved(
    path: Path, *, base: dict[str, Any] | None = None, signer: Any = None, digests: Any = (), **target: Any
) -> Path:
    """A manifest beside the image ``path``, as an export that made it would write it."""
    image_format = target.pop("format", path.suffix[1:].removeprefix("a"))
    manifest = manifest_path(path)
    with (
        FileSource(path) as file,
        closing(open_image(path)) as image,
        closing(ChunkRecord(image.geometry.virtual_size, path.parent)) as chunks,
        closing(DamageRecord(path.parent)) as damaged,
        TargetFile(manifest, force=True, sync=False) as sink,
    ):
        whole = _digest(image, chunks, own=base is not None) if digests else None
        if whole is None:
            _digest(image, chunks, own=base is not None)
        head = {
            "vhdtool_version": "0.1.0",
            "started": WHEN,
            "finished": WHEN,
            "target": {**_facts(path, image, file, image_format), **target},
            "point_in_time": "leaf",
            "log_replayed": False,
            "base": base,
        }
        of_disk = {name: hashlib.new(name, whole or b"").hexdigest() for name in digests}
        tail: dict[str, Any] = {"layers": [], "findings": []}
        write_manifest(
            sink, head=head, chunks=chunks, digests=of_disk, tail=tail, damaged=damaged, signer=signer
        )
        sink.publish()
    return manifest


class _Memory:
    """Keeps the disk."""

    def __init__(self, size: int) -> None:
        self.data = bytearray(size)

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        self.data[offset : offset + len(data)] = data

    def zeros(self, offset: int, length: int) -> None:
        pass


def _digest(image: DiskImage, chunks: ChunkRecord, *, own: bool) -> bytes:
    size = image.geometry.virtual_size
    plans = (
        merged(w.offset, w.length, w.layer, w.file_offset) if own else w.plan()
        for w in resolve([image], 0, size)
    )
    memory = _Memory(min(size, 64 << 20))
    mover = Mover(
        [image.source],
        memory if size <= 64 << 20 else None,
        consumers=[ChunkDigester(chunks)],
        reporter=Reporter("copy", size),
    )
    mover.run(plans)
    chunks.finish()
    return bytes(memory.data)


def _facts(path: Path, image: DiskImage, file: FileSource, image_format: str) -> dict[str, Any]:
    geometry = image.geometry
    return {
        "path": path.name,
        "format": image_format,
        "subformat": str(image.type),
        "virtual_size": geometry.virtual_size,
        "file_size": file.size,
        "block_size": geometry.block_size if geometry.has_table else 0,
        "logical_sector_size": geometry.sector_size,
        "disk_id": None if image.disk_id is None else str(image.disk_id),
        "write_id": None if image.write_id is None else str(image.write_id),
        "structure": structure_digest(image, file) if image_format in ("vhd", "vhdx") else None,
    }


def a_base_record(parent: Path) -> dict[str, Any]:
    """``base`` of an increment that is a child of ``parent``."""
    with closing(open_image(parent)) as image:
        return {
            "path": parent.name,
            "format": str(image.format),
            "virtual_size": image.geometry.virtual_size,
            "disk_id": str(image.disk_id),
            "write_id": str(image.write_id),
            "point_in_time": "before",
            "root": None,
            "differences": "metadata",
        }
