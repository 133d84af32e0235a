"""The second reader: right for any chain, quick where there is nothing, and nobody's relative."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vhdtool
from tests.chain.fake import FakeImage, chain_of, fake_chains, truth
from tests.export.kit import MIB, a_disk, some_data
from tests.generated import FileSink, Style, a_chain
from vhdtool.chain.discover import open_chain
from vhdtool.errors import CorruptError
from vhdtool.export.proof import against
from vhdtool.export.proof.against import compare_naively
from vhdtool.export.proof.naive import NaiveDisk
from vhdtool.export.proof.verify import verify_against
from vhdtool.formats.raw import RawImage
from vhdtool.formats.vhdx.write import VhdxWriter
from vhdtool.model.geometry import Geometry
from vhdtool.model.identity import DiskType, Identity
from vhdtool.model.state import BlockState
from vhdtool.source import FileSource, MemorySource

PACKAGE = Path(vhdtool.__file__).parent
# What exports, compares and reads disks elsewhere.
FOREIGN = {
    "vhdtool.chain",
    "vhdtool.kernels",
    "vhdtool.export.containers.clone",
    "vhdtool.export.proof.compare",
    "vhdtool.export.containers.container",
    "vhdtool.export.increment",
    "vhdtool.export.job",
    "vhdtool.export.moving.copy",
    "vhdtool.export.moving.crew",
    "vhdtool.export.moving.fill",
    "vhdtool.export.moving.holes",
    "vhdtool.export.moving.pipeline",
    "vhdtool.export.moving.spans",
    "vhdtool.export.proof.readback",
    "vhdtool.export.work",
}


def painted(disk: NaiveDisk, start: int, length: int) -> bytes:
    canvas = bytearray(b"\xff" * length)
    disk.paint(start, memoryview(canvas))
    return bytes(canvas)


def no_tick(done: int, position: int) -> None:
    pass


# ------------------------------------------------------------ what it reads


@given(images=fake_chains(), data=st.data())
def test_any_part_of_any_chain_is_painted_as_its_truth_is(
    images: list[FakeImage], data: st.DataObject
) -> None:
    disk, expected = NaiveDisk(images), truth(images)
    sector = images[0].geometry.sector_size
    start = data.draw(st.integers(0, len(expected) // sector)) * sector
    length = data.draw(st.integers(0, (len(expected) - start) // sector)) * sector

    assert painted(disk, start, length) == expected[start : start + length]


@pytest.mark.parametrize("image_format", ["vhd", "vhdx"])
@pytest.mark.parametrize("seed", range(3))
def test_chains_on_disk_are_painted_as_their_truth_is(tmp_path: Path, image_format: str, seed: int) -> None:
    style = Style(image_format, size=4 * MIB, logs=0.5)
    leaf = a_chain(tmp_path, 4, style, seed)

    with open_chain(leaf.path) as chain:
        disk = NaiveDisk(chain.images)
        whole = b"".join(painted(disk, at, min(MIB, disk.size - at)) for at in range(0, disk.size, MIB))
    assert whole == leaf.disk.tobytes()


@given(images=fake_chains())
def test_what_is_passed_over_is_zeros(images: list[FakeImage]) -> None:
    disk, expected = NaiveDisk(images), truth(images)
    position = 0
    while position < disk.size:
        data = disk.next_data(position)
        assert position <= data <= disk.size
        assert not any(expected[position:data])
        position = data + 512


def test_a_damaged_block_is_refused_with_its_guest_range() -> None:
    states = [BlockState.DATA, BlockState.DAMAGED]
    disk = NaiveDisk([FakeImage(Geometry(2048, 1024), states, {})])

    assert painted(disk, 0, 1024)
    with pytest.raises(CorruptError, match=r"0x400 to 0x800 .*chain\.damaged_range"):
        painted(disk, 0, 2048)


def test_a_block_that_the_files_end_cuts_off_is_an_error_with_its_guest_offset() -> None:
    image = FakeImage(Geometry(2048, 1024), [BlockState.DATA] * 2, {})
    image.source = MemorySource("cut", image.data[: image.places[1] + 100])
    disk = NaiveDisk([image])

    assert disk.next_data(1024) == 1024
    with pytest.raises(CorruptError, match=r"payload of guest offset 0x400"):
        painted(disk, 1024, 1024)


# ------------------------------------------------------------ how it compares


@settings(max_examples=60)
@given(one=fake_chains(), two=fake_chains(), window=st.sampled_from([512 * 8, 1 << 20]))
def test_any_two_chains_compare_as_their_bytes_do(
    one: list[FakeImage], two: list[FakeImage], window: int
) -> None:
    a, b = truth(one), truth(two)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(against, "WINDOW", window)
        comparison = compare_naively(NaiveDisk(one), NaiveDisk(two), no_tick)

    common = min(len(a), len(b))
    differing = [i for i in range(common) if a[i] != b[i]]
    expected = differing[0] if differing else (None if len(a) == len(b) else common)
    assert comparison.first_difference == expected
    assert comparison.equal == (a == b)
    sectors = {i // 512 for i in differing} | set(range(common // 512, max(len(a), len(b)) // 512))
    found = [s for start, length in comparison.ranges for s in range(start // 512, (start + length) // 512)]
    assert found == sorted(sectors)
    assert comparison.bytes == 512 * len(sectors)


@given(one=fake_chains())
def test_a_chain_equals_itself_and_is_read_on_both_sides(one: list[FakeImage]) -> None:
    comparison = compare_naively(NaiveDisk(one), NaiveDisk(one), no_tick)

    assert comparison.equal
    disk = NaiveDisk(one)
    painted(disk, 0, disk.size)
    assert comparison.read_bytes in (0, 2 * disk.read_bytes)


def test_every_single_flipped_byte_of_a_raw_target_is_found_exactly(tmp_path: Path) -> None:
    leaf = a_chain(tmp_path, 3, Style("vhdx", size=2 * MIB), seed=5)
    truth_of_leaf = leaf.disk.tobytes()

    with open_chain(leaf.path) as chain:
        for at in (0, 1, 511, 512, MIB - 1, MIB, 2 * MIB - 1, len(truth_of_leaf) - 1):
            changed = bytearray(truth_of_leaf)
            changed[at] ^= 4
            target = RawImage(MemorySource("target", bytes(changed)))
            comparison = compare_naively(NaiveDisk([target]), NaiveDisk(chain.images), no_tick)
            assert comparison.first_difference == at
            assert comparison.ranges == ((at // 512 * 512, 512),)


def test_a_disk_of_64_tib_is_compared_by_what_stands_in_it(tmp_path: Path) -> None:
    path, raw = tmp_path / "huge.vhdx", tmp_path / "huge.raw"
    places = {0: b"a", 40 << 40: b"b", (64 << 40) - MIB: b"c"}
    with path.open("wb") as file:
        writer = VhdxWriter(
            FileSink(file),
            virtual_size=64 << 40,
            block_size=MIB,
            logical_sector_size=512,
            physical_sector_size=4096,
            disk_type=DiskType.DYNAMIC,
            disk_id=Identity(b"d" * 16),
            write_id=Identity(b"w" * 16),
        )
        for place, data in places.items():
            writer.write_block(place // MIB, data)
        file.truncate(writer.finish())
    ticks = []

    # Not every file system holds a raw file of that size, so the other side is the same image.
    with open_chain(path) as one, open_chain(path) as two:
        comparison = compare_naively(
            NaiveDisk(one.images), NaiveDisk(two.images), lambda done, at: ticks.append(at)
        )
    assert comparison.equal
    assert len(ticks) <= 8
    assert comparison.read_bytes == 2 * 3 * MIB

    with raw.open("wb") as file:
        file.truncate(4 << 40)
        file.seek(3 << 40)
        file.write(b"x")
    with closing(FileSource(raw)) as a, closing(FileSource(a_disk(tmp_path / "small.raw", MIB, {}))) as b:
        if next(a.data_ranges(0, a.size)) == (0, a.size):
            pytest.skip("this file system does not tell holes")
        comparison = compare_naively(NaiveDisk([RawImage(a)]), NaiveDisk([RawImage(b)]), no_tick)
    assert (comparison.first_difference, comparison.bytes) == (MIB, (4 << 40) - MIB)


def test_verify_against_uses_it_for_both_sides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leaf = a_chain(tmp_path, 2, Style("vhd", size=3 * MIB), seed=1)
    raw = tmp_path / "target.raw"
    raw.write_bytes(leaf.disk.tobytes())
    from vhdtool.chain import flatten, walk

    def forbidden(*args: object, **options: object) -> None:
        raise AssertionError("the fast path was used")

    monkeypatch.setattr(flatten, "resolve", forbidden)
    monkeypatch.setattr(walk, "walk", forbidden)
    with open_chain(leaf.path) as chain, open_chain(leaf.path) as other:
        assert verify_against(raw, chain).equal
        assert verify_against(other, chain).equal


def test_verify_against_finds_what_the_exporting_path_could_not_see(tmp_path: Path) -> None:
    data = {MIB: some_data(4096)}
    with (
        open_chain(a_disk(tmp_path / "a.raw", 2 * MIB, data)) as a,
        open_chain(a_disk(tmp_path / "b.raw", 2 * MIB + 512, data)) as b,
    ):
        comparison = verify_against(a, b)

    assert (comparison.first_difference, comparison.bytes) == (2 * MIB, 512)


def test_a_damaged_chain_is_not_compared() -> None:
    damaged = FakeImage(Geometry(1024, 512), [BlockState.DATA, BlockState.DAMAGED], {})

    with pytest.raises(CorruptError):
        verify_against(chain_of(damaged), chain_of(damaged))


# ------------------------------------------------------------ what it is made of


def runtime_imports(path: Path) -> Iterator[str]:
    """Every module that ``path`` imports when it runs, at its top or in a function, as a dotted name."""

    def visit(node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for other in node.orelse:
                yield from visit(other)
            return
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            yield from visit(child)

    return visit(ast.parse(path.read_text(encoding="utf-8")))


def file_of(module: str) -> Path | None:
    path = PACKAGE.parent / Path(*module.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def reached(*modules: str) -> set[str]:
    """Our modules that these import, and what those import in turn."""
    seen: set[str] = set()
    pending = list(modules)
    while pending:
        module = pending.pop()
        path = file_of(module)
        if not module.startswith("vhdtool.") or path is None or module in seen:
            continue
        seen.add(module)
        pending.extend(runtime_imports(path))
    return seen


def is_foreign(module: str) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in FOREIGN)


def test_the_second_reader_reaches_nothing_of_what_exports_and_compares() -> None:
    found = reached("vhdtool.export.proof.naive", "vhdtool.export.proof.against")

    assert {"vhdtool.export.proof.naive", "vhdtool.export.proof.against", "vhdtool.formats.image"} <= found
    assert sorted(filter(is_foreign, found)) == []


def test_the_test_above_sees_imports_inside_functions() -> None:
    found = reached("vhdtool.export.proof.compare")

    assert {"vhdtool.chain.flatten", "vhdtool.chain.resolved", "vhdtool.export.moving.holes"} <= found
    assert all((file_of(name) is not None) for name in FOREIGN)


def test_nothing_foreign_is_imported_when_it_runs(tmp_path: Path) -> None:
    import subprocess
    import sys

    path = a_disk(tmp_path / "a.raw", MIB)
    code = (
        "import sys\n"
        "from vhdtool.export.proof.against import compare_naively\n"
        "from vhdtool.export.proof.naive import NaiveDisk\n"
        "from vhdtool.formats.raw import RawImage\n"
        "from vhdtool.source import FileSource\n"
        "with FileSource(sys.argv[1]) as file:\n"
        "    disk = lambda: NaiveDisk([RawImage(file)])\n"
        "    assert compare_naively(disk(), disk(), lambda *news: None).equal\n"
        "print(*sorted(name for name in sys.modules if name.startswith('vhdtool.')))\n"
    )

    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)

    assert [name for name in done.stdout.split() if is_foreign(name)] == []
