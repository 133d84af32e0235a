"""Synthetic chains: the same every time, as promised, and read alike by us and by other programs."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.against_others.test_chains_against_others import by_libvhdi, by_qemu, needs_libvhdi, needs_qemu
from vhdtool import open_chain
from vhdtool.chain.chain import Chain
from vhdtool.chain.walk import walk
from vhdtool.errors import ExportError, TargetExistsError
from vhdtool.export.containers.target import TargetFile
from vhdtool.model.identity import ImageFormat
from vhdtool.simulate.synthetic import Layout, Recipe, layer_name, make_chain, space_needed

KIB, MIB = 1 << 10, 1 << 20
FORMATS = [ImageFormat.VHD, ImageFormat.VHDX]
create = partial(TargetFile, sync=False)


def a_recipe(**changes: Any) -> Recipe:
    return Recipe(**{"virtual_size": 16 * MIB, "layers": 4, "rewrite": 0.1, **changes})


def points_of(
    folder: Path,
    recipe: Recipe,
    layout: Layout,
    then: Callable[[Path, bytes], None] = lambda path, disk: None,
) -> list[Path]:
    """Make the chain; at each point in time ``then`` gets the layer's path and the flat disk."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    with create(folder / "flat.raw") as flat:
        for path in make_chain(folder, recipe, layout, create, flat=flat):
            then(path, flat.partial.read_bytes().ljust(recipe.virtual_size, b"\0"))
            paths.append(path)
    return paths


def disk_of(chain: Chain) -> bytes:
    size = chain.virtual_size
    return b"".join(chain.read(at, min(MIB, size - at)) for at in range(0, size, MIB))


@pytest.mark.parametrize("image_format", FORMATS, ids=str)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"grain": 512, "run_length_max": 2 * KIB},
        {"grain": 64 * KIB, "rewrite": 0.5},
        {"virtual_size": 21 * MIB + 512, "fill": 1.0},
        {"run_length_min": 8 * KIB, "run_length_max": 3 * MIB, "rewrite": 0.9},
        {"rewrite": 0.0},
    ],
    ids=str,
)
def test_every_point_in_time_reads_as_its_flat_disk(
    image_format: ImageFormat, changes: dict[str, Any], tmp_path: Path
) -> None:
    recipe = a_recipe(**changes)

    def check(path: Path, disk: bytes) -> None:
        with open_chain(path) as chain:
            assert chain.complete
            assert chain.warnings() == ()
            assert chain.virtual_size == recipe.virtual_size
            assert disk_of(chain) == disk

    points_of(tmp_path, recipe, Layout(image_format), check)


@pytest.mark.parametrize("image_format", FORMATS, ids=str)
def test_a_chain_without_payload_has_the_same_tables_and_reads_zeros(
    image_format: ImageFormat, tmp_path: Path
) -> None:
    points_of(tmp_path / "whole", a_recipe(), Layout(image_format))
    (tmp_path / "tables").mkdir()

    *_, leaf = make_chain(tmp_path / "tables", a_recipe(), Layout(image_format), create, payload=False)

    with open_chain(leaf) as tables, open_chain(tmp_path / "whole" / leaf.name) as whole:
        assert list(tables.plan()) == list(whole.plan())
        assert disk_of(tables) == bytes(whole.virtual_size) != disk_of(whole)


@pytest.mark.parametrize(
    "layout",
    [
        Layout(ImageFormat.VHD, base_block_size=512 * KIB, block_size=4 * MIB),
        Layout(ImageFormat.VHDX, base_block_size=8 * MIB, block_size=1 * MIB),
        # Blocks larger than the stretches that are filled, and than the disk.
        Layout(ImageFormat.VHDX, base_block_size=32 * MIB, block_size=32 * MIB),
    ],
    ids=str,
)
def test_block_sizes_change_the_files_and_not_the_disks(layout: Layout, tmp_path: Path) -> None:
    usual: list[bytes] = []
    points_of(tmp_path / "usual", a_recipe(), Layout(layout.format), lambda _, disk: usual.append(disk))
    disks: list[bytes] = []

    paths = points_of(tmp_path / "other", a_recipe(), layout, lambda _, disk: disks.append(disk))

    assert disks == usual
    with open_chain(paths[-1]) as chain:
        sizes = [image.geometry.block_size for image in chain.images]
        assert sizes == [layout.block_size] * 3 + [layout.base_block_size]
        assert disk_of(chain) == disks[-1]


@pytest.mark.parametrize("image_format", FORMATS, ids=str)
def test_the_same_recipe_gives_the_same_files(image_format: ImageFormat, tmp_path: Path) -> None:
    once = points_of(tmp_path / "a", a_recipe(), Layout(image_format))
    again = points_of(tmp_path / "b", a_recipe(), Layout(image_format))
    other = points_of(tmp_path / "c", a_recipe(seed=1), Layout(image_format))

    assert [p.name for p in once] == [layer_name(i, image_format) for i in range(4)]
    assert [p.read_bytes() for p in once] == [p.read_bytes() for p in again]
    assert all(a.read_bytes() != b.read_bytes() for a, b in zip(once, other))


def test_a_deep_chain_begins_with_the_shallow_one(tmp_path: Path) -> None:
    shallow = points_of(tmp_path / "a", a_recipe(layers=2), Layout(ImageFormat.VHDX))
    deep = points_of(tmp_path / "b", a_recipe(layers=5), Layout(ImageFormat.VHDX))

    assert len(deep) == 5
    assert [p.read_bytes() for p in shallow] == [p.read_bytes() for p in deep[:2]]


def test_both_formats_hold_the_same_disks(tmp_path: Path) -> None:
    vhd: list[bytes] = []
    vhdx: list[bytes] = []

    points_of(tmp_path / "a", a_recipe(), Layout(ImageFormat.VHD), lambda _, disk: vhd.append(disk))
    points_of(tmp_path / "b", a_recipe(), Layout(ImageFormat.VHDX), lambda _, disk: vhdx.append(disk))

    assert vhd == vhdx
    assert len(set(vhd)) == 4


def test_the_noise_is_what_it_always_was(tmp_path: Path) -> None:
    # Given the first bytes that PCG64 gives for seed 7; NumPy promises to keep its raw output.
    recipe = a_recipe(seed=7)
    bits = np.random.PCG64(np.random.SeedSequence(7, spawn_key=(2, 0)))
    expected = int(bits.random_raw()).to_bytes(8, "little")
    first = int(recipe.stretches()[0])

    disks: list[bytes] = []
    points_of(tmp_path, recipe, Layout(ImageFormat.VHD), lambda _, disk: disks.append(disk))

    assert disks[0][first : first + 8] == expected


@pytest.mark.parametrize("image_format", FORMATS, ids=str)
@pytest.mark.parametrize("rewrite", [0.001, 0.02, 0.3, 0.9])
def test_each_layer_holds_exactly_the_share_it_was_to_rewrite(
    image_format: ImageFormat, rewrite: float, tmp_path: Path
) -> None:
    recipe = a_recipe(rewrite=rewrite, fill=0.75)

    paths = points_of(tmp_path, recipe, Layout(image_format))

    assert recipe.allocated == 12 * MIB
    assert recipe.rewritten == round(rewrite * 12 * MIB / 4096) * 4096
    for path in paths[1:]:
        with open_chain(path) as chain:
            leaf = [r for r in walk(chain.images, 0, chain.virtual_size) if r.layer == 0]
        assert sum(run.length for run in leaf) == recipe.rewritten


def test_writes_keep_to_the_grain_the_base_and_their_lengths() -> None:
    recipe = a_recipe(
        virtual_size=256 * MIB, grain=8 * KIB, run_length_min=16 * KIB, run_length_max=48 * KIB, rewrite=0.05
    )
    stretches = recipe.stretches()

    for layer in (1, 2, 3):
        starts, stops = recipe.writes(layer)

        lengths = stops - starts
        assert np.all(starts % (8 * KIB) == 0)
        assert np.all(lengths % (8 * KIB) == 0)
        assert np.all(starts[1:] > stops[:-1])
        assert lengths.sum() == recipe.rewritten
        # Nearly all: two writes may meet, the end of a stretch and of the share cut one short.
        assert np.mean((lengths >= 16 * KIB) & (lengths <= 48 * KIB)) > 0.9
        assert set(np.unique(lengths)) >= {16 * KIB, 24 * KIB, 32 * KIB, 40 * KIB, 48 * KIB}
        assert np.all(np.isin(starts // recipe.stretch * recipe.stretch, stretches))
        assert np.all((stops - 1) // recipe.stretch == starts // recipe.stretch)


def test_writes_are_spread_over_the_whole_base() -> None:
    recipe = a_recipe(virtual_size=1 << 30, rewrite=0.2)
    stretches = recipe.stretches()

    starts, stops = recipe.writes(1)

    # 16 stretches of 32 MiB, a fifth of each within the luck of the draw (standard deviation below 0.01).
    written = np.zeros(len(stretches))
    np.add.at(written, np.searchsorted(stretches, starts, side="right") - 1, stops - starts)
    assert recipe.stretch == 32 * MIB
    assert len(stretches) == 16
    assert np.all(np.abs(written / recipe.stretch - 0.2) < 0.05)


def test_guest_offsets_leave_the_holes_out() -> None:
    recipe = a_recipe(fill=0.5)
    first, second = recipe.stretches().tolist()

    offsets = recipe.guest_offsets(np.array([0, 5, 4 * MIB - 1, 4 * MIB, 8 * MIB - 1]))

    assert recipe.stretch == 4 * MIB
    assert offsets.tolist() == [first, first + 5, first + 4 * MIB - 1, second, second + 4 * MIB - 1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"virtual_size": 1000}, "1 MiB at least"),
        ({"virtual_size": 2 * MIB + 1}, "whole sectors"),
        ({"layers": 0}, "1 to 256"),
        ({"layers": 257}, "1 to 256"),
        ({"fill": 0.0}, "filled"),
        ({"fill": 1.01}, "filled"),
        ({"rewrite": -0.1}, "written anew"),
        ({"rewrite": 0.95}, "written anew"),
        ({"rewrite": float("nan")}, "written anew"),
        ({"grain": 256}, "power of two"),
        ({"grain": 3 * 512}, "power of two"),
        ({"grain": 128 * KIB}, "power of two"),
        ({"run_length_min": 6 * KIB}, "multiples of the grain"),
        ({"run_length_min": 8 * KIB, "run_length_max": 4 * KIB}, "multiples of the grain"),
        ({"seed": -1}, "seed"),
    ],
    ids=str,
)
def test_what_cannot_be_made_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        a_recipe(**changes)


def test_a_format_refuses_blocks_it_does_not_have(tmp_path: Path) -> None:
    layout = Layout(ImageFormat.VHDX, block_size=512 * KIB)

    with pytest.raises(ValueError, match="block_size"):
        points_of(tmp_path, a_recipe(), layout)

    assert not [p for p in tmp_path.iterdir() if p.name.endswith(".partial")]


def test_nothing_that_is_there_is_written_over(tmp_path: Path) -> None:
    (tmp_path / layer_name(1, ImageFormat.VHD)).write_bytes(b"mine")

    with pytest.raises(TargetExistsError):
        points_of(tmp_path, a_recipe(), Layout(ImageFormat.VHD))

    assert (tmp_path / layer_name(1, ImageFormat.VHD)).read_bytes() == b"mine"


def test_a_chain_that_is_given_up_leaves_only_whole_files(tmp_path: Path) -> None:
    made = make_chain(tmp_path, a_recipe(), Layout(ImageFormat.VHDX), create)
    next(made)
    next(made)

    del made
    gc.collect()

    assert sorted(p.name for p in tmp_path.iterdir()) == ["layer000.vhdx", "layer001.avhdx"]


def test_a_full_disk_is_told_and_leaves_no_part_of_a_file(tmp_path: Path) -> None:
    class Full(TargetFile):
        def write_at(self, offset: int, data: bytes | memoryview) -> None:
            if "layer002" in self.name and len(data) > 4096:
                raise ExportError("cannot write: no room")
            super().write_at(offset, data)

    with pytest.raises(ExportError, match="no room"):
        list(make_chain(tmp_path, a_recipe(), Layout(ImageFormat.VHD), partial(Full, sync=False)))

    assert sorted(p.name for p in tmp_path.iterdir()) == ["layer000.vhd", "layer001.avhd"]


@pytest.mark.skipif(not hasattr(os.stat_result, "st_blocks"), reason="no st_blocks on this platform")
@pytest.mark.parametrize("image_format", FORMATS, ids=str)
@pytest.mark.parametrize("changes", [{}, {"grain": 512}, {"layers": 9, "rewrite": 0.01}], ids=str)
def test_the_space_that_is_asked_for_suffices_and_is_not_absurd(
    image_format: ImageFormat, changes: dict[str, Any], tmp_path: Path
) -> None:
    recipe = a_recipe(virtual_size=64 * MIB, **changes)

    paths = points_of(tmp_path, recipe, Layout(image_format))

    needed = space_needed(recipe, Layout(image_format))
    sizes = [path.stat() for path in paths]
    assert sum(s.st_blocks * 512 for s in sizes) <= needed.sparse
    assert sum(s.st_size for s in sizes) <= needed.full
    assert needed.sparse < 2 * (recipe.allocated + recipe.layers * (2 * recipe.rewritten + 2 * MIB))


@needs_qemu
@pytest.mark.parametrize("image_format", FORMATS, ids=str)
def test_qemu_reads_the_base_as_we_do(image_format: ImageFormat, tmp_path: Path) -> None:
    disks: list[bytes] = []

    paths = points_of(tmp_path, a_recipe(), Layout(image_format), lambda _, disk: disks.append(disk))

    assert by_qemu(paths[0], tmp_path / "qemu.raw") == disks[0]


@needs_qemu
def test_qemu_finds_nothing_to_complain_about(tmp_path: Path) -> None:
    paths = points_of(tmp_path, a_recipe(layers=1), Layout(ImageFormat.VHDX))

    qemu = shutil.which("qemu-img")
    assert qemu is not None
    subprocess.run([qemu, "check", str(paths[0])], check=True, capture_output=True)


@needs_libvhdi
@pytest.mark.parametrize("image_format", FORMATS, ids=str)
def test_libvhdi_reads_every_point_as_we_do(image_format: ImageFormat, tmp_path: Path) -> None:
    def check(path: Path, disk: bytes) -> None:
        assert by_libvhdi(path) == disk

    points_of(tmp_path, a_recipe(), Layout(image_format), check)
