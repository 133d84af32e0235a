"""Merges done for real: new files, with the package's writers, to compare with merges done in thought."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tests.generated import CREATED, FileSink
from vhdtool.chain.chain import Chain
from vhdtool.chain.discover import open_chain
from vhdtool.export.create import Identities, create_image
from vhdtool.export.job import export_image
from vhdtool.formats.image import DiskImage
from vhdtool.formats.vhd.write import ParentRecord as VhdParent
from vhdtool.formats.vhd.write import VhdWriter
from vhdtool.formats.vhdx import chunk
from vhdtool.formats.vhdx.write import ParentRecord as VhdxParent
from vhdtool.formats.vhdx.write import VhdxWriter
from vhdtool.model.identity import DiskType, ImageFormat, PathKind
from vhdtool.model.state import BlockState

NOBODY, ZEROS, DATA = 0, 1, 2
Bytes = npt.NDArray[np.uint8]


def merge_for_real(leaf: Path, first: int, last: int, folder: Path) -> Path:
    """Layers ``first`` to ``last`` of the chain of ``leaf`` written as one file; the new chain's leaf.

    The new file has the name and the identity of layer ``first``, so its child need not be changed.
    """
    folder.mkdir()
    with open_chain(leaf) as chain:
        paths = [layer.path for layer in chain.layers]
        for path in (*paths[:first], *paths[last + 1 :]):
            shutil.copyfile(path, folder / path.name)
        if last == len(paths) - 1:
            export_and_create(chain, first, folder / paths[first].name)
        else:
            write_differencing(chain, first, last, folder / paths[first].name)
    return folder / leaf.name


def export_and_create(chain: Chain, first: int, target: Path) -> None:
    """The point in time of layer ``first`` exported, and a new image filled from that."""
    top, base = chain.layers[first], chain.layers[-1].image
    raw = target.with_name("exported.raw")
    is_vhd = base.format is ImageFormat.VHD
    with open_chain(top.path) as point:
        export_image(point, raw, sync=False)
    create_image(
        target,
        format="vhd" if is_vhd else "vhdx",
        subformat="fixed" if base.type is DiskType.FIXED else "dynamic",
        block_size=base.geometry.block_size if base.geometry.has_table else None,
        logical_sector_size=base.geometry.sector_size,
        source=raw,
        identities=Identities(top.image.write_id if is_vhd else base.disk_id, top.image.write_id, CREATED),
        sync=False,
    )
    raw.unlink()


def write_differencing(chain: Chain, first: int, last: int, target: Path) -> None:
    """Layers of ``chain`` as one differencing image, sector by sector."""
    images = chain.images[first : last + 1]
    geometry = images[0].geometry
    block_size = images[-1].geometry.block_size
    said, disk = contents(images)
    with target.open("wb") as file:
        writer = a_writer(FileSink(file), images, block_size)
        for block in range(-(-geometry.virtual_size // block_size)):
            here = said[block * block_size // geometry.sector_size :][: block_size // geometry.sector_size]
            data = disk[block * block_size : (block + 1) * block_size].tobytes()
            if not here.any():
                continue
            bits = np.zeros(block_size // geometry.sector_size, np.uint8)
            bits[: len(here)] = here > 0
            bitmap = np.packbits(bits, bitorder="little").tobytes()
            if isinstance(writer, VhdWriter) or not here.all():
                writer.write_block(block, data, bitmap)
            elif (here == DATA).any():
                writer.write_block(block, data)
            else:
                writer.set_state(block, chunk.ZERO)
        file.truncate(writer.finish())


def a_writer(sink: FileSink, images: tuple[DiskImage, ...], block_size: int) -> VhdWriter | VhdxWriter:
    """Of an image with the identity of the first of ``images`` and the parent of the last."""
    top, bottom = images[0], images[-1]
    assert bottom.parent is not None
    assert top.write_id is not None
    paths = {path.kind: path.path for path in bottom.parent.paths}
    absolute, relative = paths[PathKind.ABSOLUTE_PATH], paths[PathKind.RELATIVE_PATH]
    identity = bottom.parent.identities[0]
    if bottom.format is ImageFormat.VHD:
        return VhdWriter(
            sink,
            virtual_size=top.geometry.virtual_size,
            unique_id=top.write_id,
            timestamp=CREATED,
            disk_type=DiskType.DIFFERENCING,
            block_size=block_size,
            parent=VhdParent(identity, absolute, relative),
        )
    assert bottom.disk_id is not None
    return VhdxWriter(
        sink,
        virtual_size=top.geometry.virtual_size,
        block_size=block_size,
        logical_sector_size=top.geometry.sector_size,
        physical_sector_size=4096,
        disk_type=DiskType.DIFFERENCING,
        disk_id=bottom.disk_id,
        write_id=top.write_id,
        parent=VhdxParent(identity, relative, absolute),
    )


def contents(images: tuple[DiskImage, ...]) -> tuple[Bytes, Bytes]:
    """What ``images`` say of each sector of the first one's disk (NOBODY, ZEROS or DATA), and the bytes."""
    geometry = images[0].geometry
    size = geometry.sector_size
    said = np.full(geometry.sector_count, NOBODY, np.uint8)
    disk = np.zeros(geometry.virtual_size, np.uint8)
    for image in images:
        said[image.geometry.sector_count :][said[image.geometry.sector_count :] == NOBODY] = ZEROS
        for block in range(image.geometry.block_count):
            state, place = image.entry(block)
            first = block * image.geometry.sectors_per_block
            count = max(0, min(image.geometry.block_length(block) // size, len(said) - first))
            here = held(image, block, state)[:count] & (said[first : first + count] == NOBODY)
            where = first + np.flatnonzero(here)
            said[where] = ZEROS if state is BlockState.ZERO else DATA
            for sector in where.tolist() if state is not BlockState.ZERO else ():
                at = place + (sector - first) * size
                data = image.source.read_exact(at, size, field="sector")
                disk[sector * size : (sector + 1) * size] = np.frombuffer(data, np.uint8)
    return said, disk


def held(image: DiskImage, block: int, state: BlockState) -> npt.NDArray[np.bool_]:
    """Which sectors of a block an image has."""
    if state is not BlockState.PARTIAL:
        return np.full(image.geometry.sectors_per_block, state is not BlockState.ABSENT)
    bits = np.unpackbits(np.frombuffer(image.bitmap(block), np.uint8), bitorder="little")
    return bits[: image.geometry.sectors_per_block].astype(np.bool_)
