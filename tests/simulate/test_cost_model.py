"""Chains made at random cost what arithmetic says: E = (1 - (1 - f) ** (d + 1)) / f probes a lookup.

Each of ``d`` layers above a base rewrites a fraction ``f`` of the disk, 4 KiB here and there.  A read of
4 KiB asks the leaf; with a chance of 1 - f the layer below, of (1 - f) ** 2 the next, and so on to the base.
"""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

import numpy as np
import pytest

import vhdtool
from tests.generated import CREATED, FileSink
from vhdtool.formats.vhd.write import ParentRecord as VhdParent
from vhdtool.formats.vhd.write import VhdWriter
from vhdtool.formats.vhdx.write import ParentRecord as VhdxParent
from vhdtool.formats.vhdx.write import VhdxWriter
from vhdtool.model.identity import DiskType, Identity
from vhdtool.simulate.cost import simulate
from vhdtool.simulate.workloads import Area, Random

MIB = 1 << 20
SIZE = 128 * MIB
BLOCK = 2 * MIB
GRAIN = 4096
FRACTION = 0.02
READS = 200_000


def a_writer(file: FileSink, suffix: str, number: int) -> VhdWriter | VhdxWriter:
    """For layer ``number`` from the base up."""
    mine, parents = Identity.of_uuid(UUID(int=1 + number)), Identity.of_uuid(UUID(int=number))
    kind = DiskType.DIFFERENCING if number else DiskType.DYNAMIC
    below = f".\\{number - 1}{suffix}"
    if suffix == ".vhd":
        return VhdWriter(
            file,
            virtual_size=SIZE,
            unique_id=mine,
            timestamp=CREATED,
            disk_type=kind,
            block_size=BLOCK,
            parent=VhdParent(parents, "", below) if number else None,
        )
    return VhdxWriter(
        file,
        virtual_size=SIZE,
        block_size=BLOCK,
        disk_type=kind,
        disk_id=Identity.of_uuid(UUID(int=1 << 64)),
        write_id=mine,
        parent=VhdxParent(parents, below, "") if number else None,
    )


def a_random_chain(folder: Path, suffix: str, depth: int, seed: int) -> Path:
    """A base that holds everything, ``depth`` layers above it; no payload is written.  The leaf's path."""
    rng = np.random.default_rng(seed)
    grains = SIZE // GRAIN
    path = folder / f"0{suffix}"
    for number in range(depth + 1):
        path = folder / f"{number}{suffix}"
        rewritten = np.zeros(grains, np.bool_)
        if number == 0:
            rewritten[:] = True
        else:
            rewritten[rng.choice(grains, round(grains * FRACTION), replace=False)] = True
        bits = np.packbits(np.repeat(rewritten, GRAIN // 512), bitorder="little").reshape(
            -1, BLOCK // 512 // 8
        )
        with path.open("wb") as file:
            writer = a_writer(FileSink(file), suffix, number)
            for block, bitmap in enumerate(bits):
                writer.place_block(block, bitmap.tobytes() if number else None)
            file.truncate(writer.finish())
    return path


@pytest.mark.parametrize("suffix", [".vhd", ".vhdx"])
@pytest.mark.parametrize("depth", [4, 16, 64])
def test_probes_are_what_the_model_says_within_2_percent(suffix: str, depth: int, tmp_path: Path) -> None:
    leaf = a_random_chain(tmp_path, suffix, depth, seed=depth)
    expected = (1 - (1 - FRACTION) ** (depth + 1)) / FRACTION

    with vhdtool.open_chain(leaf) as chain:
        simulation = simulate(chain, Random(Area.whole(SIZE, GRAIN), READS, seed=1), engine="numpy")

    assert simulation.lookups == READS
    assert simulation.probes.mean == pytest.approx(expected, rel=0.02)
    # A layer's share of the reads is the chance to get so far and end there, the base's to get so far.
    shares = [FRACTION * (1 - FRACTION) ** layer for layer in range(depth)] + [(1 - FRACTION) ** depth]
    assert [layer.share for layer in simulation.layers] == pytest.approx(shares, abs=0.003)
    # What each layer stores is stated, what shows of it follows: all of it together is the disk.
    assert sum(layer.bytes_visible for layer in simulation.layers) == SIZE
    stored = [round(SIZE // GRAIN * FRACTION) * GRAIN] * depth + [SIZE]
    assert [layer.bytes_stored for layer in simulation.layers] == stored
