"""Finding parents: each way, their order, and what is said when none is found."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from tests.chain.disks import (
    SIZE,
    VHD,
    VHDX,
    Family,
    an_identity,
    damage,
    make_vhd,
    make_vhdx,
    record_opens,
    record_paths,
)
from vhdtool.chain import candidates, discover
from vhdtool.chain.chain import Chain, FoundBy, LinkVerdict
from vhdtool.chain.discover import open_chain
from vhdtool.chain.link import ImageFacts, Tried, judge_link
from vhdtool.chain.paths import Folders, PathMap
from vhdtool.errors import (
    ChainError,
    ChainLoopError,
    CorruptError,
    FileMissingError,
    Finding,
    FormatError,
    ParentMismatchError,
    ParentNotFoundError,
    ReadError,
    Severity,
    VhdtoolError,
)
from vhdtool.formats.registry import open_image
from vhdtool.model.identity import ParentLink, ParentPath, PathKind

VOLUME = "\\\\?\\Volume{01234567-89ab-cdef-0123-456789abcdef}"


@pytest.fixture(params=[VHD, VHDX], ids=["vhd", "vhdx"])
def family(request: pytest.FixtureRequest) -> Family:
    found = request.param
    assert isinstance(found, Family)
    return found


def link_of(leaf: Path, **options: object) -> tuple[str, Path, LinkVerdict, FoundBy]:
    """The second layer of a chain: where it is and how it was found."""
    with open_chain(leaf, **options) as chain:  # type: ignore[arg-type]
        layer = chain.layers[1]
        return layer.path.name, layer.path, chain.layers[0].link, layer.found_by


def refusal(leaf: Path, **options: object) -> Finding:
    """The finding that strict reading refuses ``leaf`` with; collecting must hold the same one."""
    with pytest.raises(VhdtoolError) as caught:
        open_chain(leaf, **options)  # type: ignore[arg-type]
    finding = caught.value.finding
    assert finding is not None
    assert caught.value.exit_code == finding.exit_code
    with open_chain(leaf, strict=False, **options) as chain:  # type: ignore[arg-type]
        assert finding in chain.all_findings()
        assert not chain.complete or finding.code == "chain.parent.sector_size"
    return finding


def codes(chain: Chain) -> dict[str, Severity]:
    return {finding.code: finding.severity for finding in chain.findings}


# ---------------------------------------------------------------- each way of finding


def test_a_base_is_a_chain_of_one_layer(tmp_path: Path, family: Family) -> None:
    leaf = family.make(tmp_path / f"base{family.suffix}", 1)

    with open_chain(leaf) as chain:
        assert [layer.found_by for layer in chain.layers] == [FoundBy.GIVEN]
        assert chain.complete
        assert chain.findings == ()


def test_a_raw_disk_is_a_chain_of_one_layer(tmp_path: Path) -> None:
    (tmp_path / "disk.img").write_bytes(bytes(4096))

    with open_chain(tmp_path / "disk.img") as chain:
        assert chain.complete
        assert chain.virtual_size == 4096


def test_a_parent_is_found_by_its_relative_path(tmp_path: Path, family: Family) -> None:
    family.make(tmp_path / f"base{family.suffix}", 1)
    leaf = family.make(tmp_path / f"leaf{family.suffix}", 2, 1, relative=f".\\base{family.suffix}")

    with open_chain(str(leaf)) as chain:
        assert [layer.path for layer in chain.layers] == [leaf, tmp_path / f"base{family.suffix}"]
        assert [layer.found_by for layer in chain.layers] == [FoundBy.GIVEN, FoundBy.RELATIVE_PATH]
        assert [layer.link for layer in chain.layers] == [LinkVerdict.OK, LinkVerdict.BASE]
        assert chain.findings == ()


def test_a_parent_is_found_in_a_sibling_folder(tmp_path: Path, family: Family) -> None:
    base = family.make(tmp_path / "disks" / f"base{family.suffix}", 1)
    leaf = family.make(
        tmp_path / "snaps" / "x" / "leaf", 2, 1, relative=f"..\\..\\disks\\base{family.suffix}"
    )

    assert link_of(leaf)[1:] == (base, LinkVerdict.OK, FoundBy.RELATIVE_PATH)


def test_a_parent_is_found_in_the_wrong_case(tmp_path: Path, family: Family) -> None:
    base = family.make(tmp_path / "Disks" / f"Base{family.suffix}", 1)
    leaf = family.make(tmp_path / "leaf", 2, 1, relative=f"DISKS\\bASE{family.suffix.upper()}")

    _, path, link, found_by = link_of(leaf)

    assert path.samefile(base)
    assert (link, found_by) == (LinkVerdict.OK, FoundBy.RELATIVE_PATH)


def test_a_parent_is_found_by_name_beside_the_child(tmp_path: Path, family: Family) -> None:
    base = family.make(tmp_path / f"base{family.suffix}", 1)
    leaf = family.make(tmp_path / "leaf", 2, 1, absolute=f"D:\\VMs\\base{family.suffix}")

    assert link_of(leaf)[1:] == (base, LinkVerdict.OK, FoundBy.NAME)


def test_a_parent_is_found_by_name_in_a_search_folder(tmp_path: Path, family: Family) -> None:
    base = family.make(tmp_path / "two" / f"base{family.suffix}", 1)
    leaf = family.make(tmp_path / "leaves" / "leaf", 2, 1, relative=f"..\\base{family.suffix}")

    found = link_of(leaf, search=[tmp_path / "missing", str(tmp_path / "two")])

    assert found[1:] == (base, LinkVerdict.OK, FoundBy.NAME)
    assert link_of(leaf, search=tmp_path / "two")[1] == base


def test_a_moved_parent_is_found_by_a_mapped_drive(tmp_path: Path, family: Family) -> None:
    base = family.make(tmp_path / "store" / "web" / f"base{family.suffix}", 1)
    leaf = family.make(tmp_path / "leaf", 2, 1, absolute=f"D:\\VMs\\Web\\BASE{family.suffix}")

    _, path, link, found_by = link_of(leaf, maps=[f"d:\\vms={tmp_path / 'store'}"])

    assert path.samefile(base)
    assert (link, found_by) == (LinkVerdict.OK, FoundBy.ABSOLUTE_PATH)


def test_a_moved_parent_is_found_by_a_mapped_share(tmp_path: Path, family: Family) -> None:
    base = family.make(tmp_path / "store" / f"base{family.suffix}", 1)
    leaf = family.make(tmp_path / "leaf", 2, 1, absolute=f"\\\\nas\\vms\\base{family.suffix}")

    found = link_of(leaf, maps=[PathMap.parse(f"\\\\NAS\\vms={tmp_path / 'store'}")])

    assert found[1:] == (base, LinkVerdict.OK, FoundBy.ABSOLUTE_PATH)


def test_a_moved_parent_is_found_by_a_mapped_volume(tmp_path: Path) -> None:
    base = make_vhdx(tmp_path / "store" / "base.vhdx", 1)
    leaf = make_vhdx(tmp_path / "leaf.avhdx", 2, 1, volume=f"{VOLUME}\\VMs\\base.vhdx")

    found = link_of(leaf, maps=[f"{VOLUME}\\VMs={tmp_path / 'store'}"])

    assert found[1:] == (base, LinkVerdict.OK, FoundBy.VOLUME_PATH)


def test_a_moved_parent_is_found_by_a_mapped_url(tmp_path: Path) -> None:
    base = make_vhd(tmp_path / "store" / "a base.vhd", 1)
    leaf = make_vhd(tmp_path / "leaf.vhd", 2, 1, locators=((b"MacX", b"file:///vhds/a%20base.vhd"),))

    assert link_of(leaf, maps=[f"/vhds={tmp_path / 'store'}"])[1:] == (
        base,
        LinkVerdict.OK,
        FoundBy.ABSOLUTE_PATH,
    )


def test_the_name_of_a_mac_url_counts_too(tmp_path: Path) -> None:
    base = make_vhd(tmp_path / "a base.vhd", 1)
    leaf = make_vhd(tmp_path / "leaf.vhd", 2, 1, locators=((b"MacX", b"file://localhost/vhds/a%20base.vhd"),))

    assert link_of(leaf)[1:] == (base, LinkVerdict.OK, FoundBy.NAME)


def test_the_parent_unicode_name_leads_to_the_parent(tmp_path: Path) -> None:
    base = make_vhd(tmp_path / "base.vhd", 1)
    leaf = make_vhd(tmp_path / "leaf.vhd", 2, 1, name="base.vhd")

    assert link_of(leaf)[1:] == (base, LinkVerdict.OK, FoundBy.NAME)


def test_a_renamed_parent_is_found_by_its_identity(tmp_path: Path, family: Family) -> None:
    base = family.make(tmp_path / "renamed.bin", 1)
    family.make(tmp_path / f"other{family.suffix}", 7)
    leaf = family.make(tmp_path / "leaf", 2, 1, relative=f".\\base{family.suffix}")

    assert link_of(leaf)[1:] == (base, LinkVerdict.OK, FoundBy.IDENTITY)


def test_a_moved_and_renamed_parent_is_found_by_its_identity_in_a_search_folder(
    tmp_path: Path, family: Family
) -> None:
    base = family.make(tmp_path / "store" / "renamed", 1)
    leaf = family.make(tmp_path / "leaf", 2, 1, relative=f".\\base{family.suffix}")

    assert link_of(leaf, search=[tmp_path / "store"])[1:] == (base, LinkVerdict.OK, FoundBy.IDENTITY)


def test_the_childs_own_folder_comes_before_the_search_folders(tmp_path: Path, family: Family) -> None:
    beside = family.make(tmp_path / "renamed", 1)
    family.make(tmp_path / "store" / "copy", 1)
    leaf = family.make(tmp_path / "leaf", 2, 1, relative=f".\\base{family.suffix}")

    assert link_of(leaf, search=[tmp_path / "store"])[1] == beside


def test_a_wrong_file_under_the_right_name_is_passed_over(tmp_path: Path, family: Family) -> None:
    family.make(tmp_path / f"base{family.suffix}", 7)
    base = family.make(tmp_path / "store" / f"base{family.suffix}", 1)
    leaf = family.make(tmp_path / "leaf", 2, 1, relative=f".\\base{family.suffix}")

    assert link_of(leaf, search=[tmp_path / "store"])[1:] == (base, LinkVerdict.OK, FoundBy.NAME)


def test_a_file_that_differs_in_case_is_tried_after_a_wrong_one(tmp_path: Path, family: Family) -> None:
    family.make(tmp_path / "base.img", 7)
    base = family.make(tmp_path / "BASE.img", 1)
    if base.samefile(tmp_path / "base.img"):
        pytest.skip("a file system without case")
    leaf = family.make(tmp_path / "leaf", 2, 1, relative=".\\base.img")

    assert link_of(leaf)[1:] == (base, LinkVerdict.OK, FoundBy.RELATIVE_PATH)


def test_a_link_to_a_child_counts_as_in_both_folders(tmp_path: Path, family: Family) -> None:
    name = f"base{family.suffix}"
    leaf = family.make(tmp_path / "real" / "leaf", 2, 1, relative=f".\\{name}")
    base = family.make(tmp_path / "real" / name, 1)
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "leaf").symlink_to(leaf)

    assert link_of(tmp_path / "links" / "leaf")[1].samefile(base)

    shutil.copy(base, tmp_path / "links" / name)

    assert link_of(tmp_path / "links" / "leaf")[1] == tmp_path / "links" / name


def test_a_link_to_the_parent_is_followed(tmp_path: Path, family: Family) -> None:
    name = f"base{family.suffix}"
    base = family.make(tmp_path / "real" / "x", 1)
    (tmp_path / name).symlink_to(base)
    leaf = family.make(tmp_path / "leaf", 2, 1, relative=f".\\{name}")

    assert link_of(leaf)[1:] == (tmp_path / name, LinkVerdict.OK, FoundBy.RELATIVE_PATH)


def test_the_leaf_may_be_named_relative_to_the_working_folder(
    tmp_path: Path, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    family.make(tmp_path / "disks" / "base", 1)
    family.make(tmp_path / "snaps" / "leaf", 2, 1, relative="..\\disks\\base")
    monkeypatch.chdir(tmp_path / "snaps")

    assert link_of(Path("leaf"))[1] == Path("../disks/base")


# ---------------------------------------------------------------- the second identity


def test_a_parent_that_carries_the_second_identity_is_accepted_with_a_warning(tmp_path: Path) -> None:
    make_vhdx(tmp_path / "base.vhdx", 1)
    leaf = make_vhdx(tmp_path / "leaf.vhdx", 2, 9, second=1, relative=".\\base.vhdx")

    with open_chain(leaf) as chain:
        assert chain.complete
        assert codes(chain) == {"chain.parent.linkage2": Severity.WARNING}


def test_a_second_identity_that_is_the_childs_own_makes_no_loop(tmp_path: Path) -> None:
    base = make_vhdx(tmp_path / "base.vhdx", 1)
    leaf = make_vhdx(tmp_path / "leaf.vhdx", 2, 1, second=2, relative=".\\leaf.vhdx")
    shutil.copy(leaf, tmp_path / "copy.vhdx")

    assert link_of(leaf)[1:] == (base, LinkVerdict.OK, FoundBy.IDENTITY)


def test_the_first_identity_is_preferred_when_searching_by_identity(tmp_path: Path) -> None:
    make_vhdx(tmp_path / "after", 1)
    before = make_vhdx(tmp_path / "before", 9)
    leaf = make_vhdx(tmp_path / "leaf.vhdx", 2, 9, second=1, relative=".\\base.vhdx")

    assert link_of(leaf)[1] == before


# ---------------------------------------------------------------- findings


def test_a_missing_parent_is_refused_with_its_identity_and_every_path_tried(
    tmp_path: Path, family: Family
) -> None:
    leaf = family.make(
        tmp_path / "snaps" / "leaf", 2, 1, relative="..\\disks\\base.img", absolute="D:\\VMs\\other.img"
    )
    (tmp_path / "store").mkdir()

    finding = refusal(leaf, search=[tmp_path / "store"])

    assert (finding.code, finding.exit_code) == ("chain.parent.missing", 66)
    assert str(UUID(int=1)) in finding.expected
    where = [
        tmp_path / "disks" / "base.img",
        tmp_path / "snaps" / "base.img",
        tmp_path / "snaps" / "other.img",
        tmp_path / "store" / "base.img",
        tmp_path / "store" / "other.img",
    ]
    places = [finding.found.index(f"{path.parent.name}/{path.name} (no such file)") for path in where[1:]]
    assert places == sorted(places)
    assert "D:\\VMs\\other.img (not followed without a --map)" in finding.found
    assert f"{tmp_path / 'store'} (no match among its 0 images)" in finding.found
    assert finding.found.count(f"{where[1]} (") == 1
    with pytest.raises(ParentNotFoundError):
        open_chain(leaf)


def test_a_path_that_two_records_lead_to_is_named_once(tmp_path: Path, family: Family) -> None:
    leaf = family.make(tmp_path / "leaf", 2, 1, relative=".\\base.img", absolute="D:\\VMs\\base.img")

    assert refusal(leaf).found.count(f"{tmp_path / 'base.img'} (") == 1


def test_a_wrong_parent_is_refused_with_both_identities(tmp_path: Path, family: Family) -> None:
    base = family.make(tmp_path / "base", 7)
    leaf = family.make(tmp_path / "leaf", 2, 1, relative=".\\base")

    finding = refusal(leaf)

    assert (finding.code, finding.exit_code) == ("chain.parent.mismatch", 66)
    assert finding.what.count(f"{base} (identity") == 1
    assert str(UUID(int=7)) in finding.found
    assert str(UUID(int=1)) in finding.expected
    assert str(base) in finding.what
    with open_chain(leaf, strict=False) as chain:
        assert [layer.link for layer in chain.layers] == [LinkVerdict.MISMATCH]
    with pytest.raises(ParentMismatchError):
        open_chain(leaf)


def test_a_wrong_parent_is_read_through_when_that_is_asked_for(tmp_path: Path, family: Family) -> None:
    base = family.make(tmp_path / "base", 7)
    leaf = family.make(tmp_path / "leaf", 2, 1, relative=".\\base")

    with open_chain(leaf, allow_mismatch=True) as chain:
        assert [layer.link for layer in chain.layers] == [LinkVerdict.MISMATCH, LinkVerdict.BASE]
        assert chain.layers[1].path == base
        assert chain.layers[1].found_by is FoundBy.RELATIVE_PATH
        assert codes(chain) == {"chain.parent.mismatch": Severity.WARNING}
        assert chain.complete


def test_a_right_parent_is_preferred_to_a_wrong_one_that_is_allowed(tmp_path: Path, family: Family) -> None:
    family.make(tmp_path / "base", 7)
    base = family.make(tmp_path / "elsewhere", 1)
    leaf = family.make(tmp_path / "leaf", 2, 1, relative=".\\base")

    assert link_of(leaf, allow_mismatch=True)[1:] == (base, LinkVerdict.OK, FoundBy.IDENTITY)


def test_an_identity_of_zeros_binds_nothing(tmp_path: Path) -> None:
    make_vhdx(tmp_path / "base.vhdx", 0)
    leaf = make_vhdx(tmp_path / "leaf.vhdx", 2, 0, relative=".\\base.vhdx")

    assert refusal(leaf, allow_mismatch=True).exit_code in (65, 66)


def test_two_copies_of_a_renamed_parent_are_ambiguous(tmp_path: Path, family: Family) -> None:
    family.make(tmp_path / "copy1", 1)
    family.make(tmp_path / "copy2", 1)
    os.link(tmp_path / "copy2", tmp_path / "link")
    leaf = family.make(tmp_path / "leaf", 2, 1, relative=".\\base")

    finding = refusal(leaf)

    assert (finding.code, finding.exit_code, finding.found) == ("chain.parent.ambiguous", 66, "2 files")
    assert "copy1" in finding.what
    assert "copy2" in finding.what


def test_two_names_of_one_renamed_parent_are_not_ambiguous(tmp_path: Path, family: Family) -> None:
    family.make(tmp_path / "one", 1)
    os.link(tmp_path / "one", tmp_path / "two")
    leaf = family.make(tmp_path / "leaf", 2, 1, relative=".\\base")

    assert link_of(leaf)[1] == tmp_path / "one"


def test_a_parent_of_another_size_is_a_warning(tmp_path: Path, family: Family) -> None:
    family.make(tmp_path / "base", 1, size=2 * SIZE)
    leaf = family.make(tmp_path / "leaf", 2, 1, relative=".\\base")

    with open_chain(leaf) as chain:
        (finding,) = chain.findings
        assert (finding.code, finding.severity) == ("chain.parent.size", Severity.WARNING)
        assert (finding.found, finding.expected) == (f"{2 * SIZE} bytes", f"{SIZE} bytes")


def test_a_parent_of_another_sector_size_is_refused(tmp_path: Path) -> None:
    make_vhdx(tmp_path / "base.vhdx", 1, sector=4096)
    leaf = make_vhdx(tmp_path / "leaf.vhdx", 2, 1, relative=".\\base.vhdx")

    finding = refusal(leaf)

    assert (finding.code, finding.exit_code) == ("chain.parent.sector_size", 65)
    assert (finding.found, finding.expected) == ("4096 bytes", "512 bytes")


def test_a_parent_of_another_virtual_disk_id_is_a_warning(tmp_path: Path) -> None:
    make_vhdx(tmp_path / "base.vhdx", 1, disk=UUID(int=0xABC))
    leaf = make_vhdx(tmp_path / "leaf.vhdx", 2, 1, relative=".\\base.vhdx")

    with open_chain(leaf) as chain:
        (finding,) = chain.findings
        assert (finding.code, finding.severity) == ("chain.parent.disk_id", Severity.WARNING)
        assert str(UUID(int=0xABC)) in finding.found


@pytest.mark.parametrize(("late", "warned"), [(0, False), (2, False), (-2, False), (3, True), (-86400, True)])
def test_a_time_stamp_that_does_not_agree_only_warns(tmp_path: Path, late: int, warned: bool) -> None:
    then = datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)
    base = make_vhd(tmp_path / "base.vhd", 1)
    os.utime(base, (0, (then + timedelta(seconds=late)).timestamp()))
    leaf = make_vhd(tmp_path / "leaf.vhd", 2, 1, relative=".\\base.vhd", timestamp=then)

    with open_chain(leaf) as chain:
        assert codes(chain) == ({"chain.parent.timestamp": Severity.WARNING} if warned else {})
        if warned:
            assert chain.findings[0].expected == "2024-05-06T07:08:09+00:00"


def test_a_time_stamp_of_zero_is_not_recorded(tmp_path: Path) -> None:
    make_vhd(tmp_path / "base.vhd", 1)
    leaf = make_vhd(tmp_path / "leaf.vhd", 2, 1, relative=".\\base.vhd", timestamp=None)

    with open_chain(leaf) as chain:
        assert chain.findings == ()


def test_a_file_of_the_other_format_is_no_parent(tmp_path: Path, family: Family) -> None:
    other = VHDX if family is VHD else VHD
    other.make(tmp_path / "base", 1)
    leaf = family.make(tmp_path / "leaf", 2, 1, relative=".\\base")

    finding = refusal(leaf)

    assert (finding.code, finding.exit_code) == ("chain.parent.format", 66)
    assert finding.found == other.suffix[1:].upper()
    with pytest.raises(ChainError):
        open_chain(leaf)


def test_a_raw_disk_is_no_parent(tmp_path: Path, family: Family) -> None:
    (tmp_path / "base.img").write_bytes(bytes(SIZE))
    leaf = family.make(tmp_path / "leaf", 2, 1, relative=".\\base.img")

    finding = refusal(leaf)

    assert (finding.code, finding.exit_code) == ("chain.parent.format", 69)


def test_a_file_that_only_has_a_parents_name_is_no_parent(tmp_path: Path, family: Family) -> None:
    (tmp_path / f"base{family.suffix}").write_bytes(bytes(SIZE))
    leaf = family.make(tmp_path / "leaf", 2, 1, relative=f".\\base{family.suffix}")

    assert refusal(leaf).exit_code == 66


def test_a_parent_that_its_own_reader_refuses_gives_its_own_error(tmp_path: Path, family: Family) -> None:
    damage(family.make(tmp_path / f"base{family.suffix}", 1))
    leaf = family.make(tmp_path / "leaf", 2, 1, relative=f".\\base{family.suffix}")

    finding = refusal(leaf)

    assert finding.code.startswith(family.suffix[1:] + ".")
    assert finding.exit_code == 65
    with pytest.raises(FormatError):
        open_chain(leaf)
    with open_chain(leaf, strict=False) as chain:
        assert "chain.parent.missing" in codes(chain)


def test_a_refused_file_is_passed_over_when_the_parent_is_elsewhere(tmp_path: Path, family: Family) -> None:
    damage(family.make(tmp_path / f"base{family.suffix}", 1))
    base = family.make(tmp_path / "renamed", 1)
    leaf = family.make(tmp_path / "leaf", 2, 1, relative=f".\\base{family.suffix}")

    assert link_of(leaf)[1:] == (base, LinkVerdict.OK, FoundBy.IDENTITY)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads everything")
def test_a_parent_that_cannot_be_read_is_an_input_error(tmp_path: Path, family: Family) -> None:
    family.make(tmp_path / "base", 1).chmod(0)
    leaf = family.make(tmp_path / "leaf", 2, 1, relative=".\\base")

    assert refusal(leaf).exit_code == 74


def test_a_parent_that_the_system_does_not_open_is_an_input_error(
    tmp_path: Path, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = family.make(tmp_path / "base", 1)
    leaf = family.make(tmp_path / "leaf", 2, 1, relative=".\\base")
    real = os.open

    def refuse(path: str | Path, *args: int) -> int:
        if Path(path) == base:
            raise PermissionError(13, "denied")
        return real(path, *args)

    monkeypatch.setattr(os, "open", refuse)

    assert refusal(leaf).exit_code == 74


def test_a_leaf_that_is_missing_or_damaged_gives_its_own_error(tmp_path: Path, family: Family) -> None:
    with pytest.raises(FileMissingError):
        open_chain(tmp_path / "missing", strict=False)
    with pytest.raises(CorruptError):
        open_chain(damage(family.make(tmp_path / f"leaf{family.suffix}", 2, 1, relative="x")), strict=False)
    with pytest.raises((CorruptError, ReadError)):
        open_chain(tmp_path)


def test_a_map_that_is_none_is_wrong_usage(tmp_path: Path, family: Family) -> None:
    with pytest.raises(ValueError, match="not of the form"):
        open_chain(family.make(tmp_path / "leaf", 1), maps=["nonsense"])


# ---------------------------------------------------------------- loops and depth


def test_an_image_that_is_its_own_parent_is_a_loop(tmp_path: Path, family: Family) -> None:
    leaf = family.make(tmp_path / "leaf", 1, 1, relative=".\\leaf")

    finding = refusal(leaf)

    assert (finding.code, finding.exit_code) == ("chain.loop", 65)
    assert finding.found == f"identity {UUID(int=1)}" or family is VHD
    with open_chain(leaf, strict=False) as chain:
        assert [layer.link for layer in chain.layers] == [LinkVerdict.LOOP]
    with pytest.raises(ChainLoopError):
        open_chain(leaf)


def test_two_images_that_are_each_others_parent_are_a_loop(tmp_path: Path, family: Family) -> None:
    leaf = family.make(tmp_path / "a", 1, 2, relative=".\\b")
    family.make(tmp_path / "b", 2, 1, relative=".\\a")

    assert refusal(leaf).code == "chain.loop"
    with open_chain(leaf, strict=False) as chain:
        assert [layer.link for layer in chain.layers] == [LinkVerdict.OK, LinkVerdict.LOOP]


def test_an_identity_that_occurs_twice_is_a_loop_even_in_another_file(tmp_path: Path, family: Family) -> None:
    family.make(tmp_path / "base", 1)
    family.make(tmp_path / "middle", 2, 1, relative=".\\base")
    leaf = family.make(tmp_path / "leaf", 1, 2, relative=".\\middle")

    assert refusal(leaf).code == "chain.loop"


def test_a_path_to_itself_with_another_identity_is_a_mismatch(tmp_path: Path, family: Family) -> None:
    leaf = family.make(tmp_path / "leaf", 2, 1, relative=".\\leaf")

    finding = refusal(leaf)

    assert finding.code == "chain.parent.mismatch"
    assert "already a layer of this chain" in finding.what


def test_a_mismatch_that_is_allowed_does_not_go_round_in_a_loop(tmp_path: Path, family: Family) -> None:
    leaf = family.make(tmp_path / "a", 1, 8, relative=".\\b")
    family.make(tmp_path / "b", 2, 9, relative=".\\a")

    assert refusal(leaf, allow_mismatch=True).code == "chain.loop"


def test_a_mismatch_that_is_allowed_is_no_copy_of_a_layer(tmp_path: Path, family: Family) -> None:
    leaf = family.make(tmp_path / "leaf", 2, 9, relative=".\\copy")
    shutil.copy(leaf, tmp_path / "copy")

    assert refusal(leaf, allow_mismatch=True).code == "chain.loop"


def test_a_chain_of_256_layers_opens(tmp_path: Path, family: Family) -> None:
    leaf = family.chain(tmp_path, 256)

    with open_chain(leaf) as chain:
        assert len(chain.layers) == 256
        assert chain.complete
        assert chain.findings == ()


def test_a_chain_of_257_layers_is_too_deep(tmp_path: Path, family: Family) -> None:
    leaf = family.chain(tmp_path, 257)

    finding = refusal(leaf)

    assert (finding.code, finding.exit_code) == ("chain.depth", 65)
    with open_chain(leaf, strict=False) as chain:
        assert len(chain.layers) == 256
        assert chain.layers[-1].link is LinkVerdict.MISSING


def test_a_chain_whose_names_are_all_gone_opens_each_file_twice_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    depth = 40
    for i in range(depth):
        make_vhd(tmp_path / f"x{i}", i + 1, i or None, relative=".\\gone.vhd")
    seen = record_opens(monkeypatch)

    with open_chain(tmp_path / f"x{depth - 1}") as chain:
        assert len(chain.layers) == depth
        assert {layer.found_by for layer in chain.layers[1:]} == {FoundBy.IDENTITY}

    assert max(seen.count(path) for path in set(seen)) == 2


# ---------------------------------------------------------------- judging alone


def test_a_link_is_judged_without_looking_for_anything(tmp_path: Path, family: Family) -> None:
    base = open_image(family.make(tmp_path / "base", 1))
    other = open_image(family.make(tmp_path / "other", 7))
    leaf = open_image(family.make(tmp_path / "leaf", 2, 1, relative=".\\base"))

    assert judge_link(leaf, base) == (LinkVerdict.OK, ())
    verdict, findings = judge_link(ImageFacts.of(leaf), other)
    assert verdict is LinkVerdict.MISMATCH
    assert [(f.code, f.severity) for f in findings] == [("chain.parent.mismatch", Severity.ERROR)]
    assert judge_link(leaf, other, allow_mismatch=True)[1][0].severity is Severity.WARNING
    for image in (base, other, leaf):
        image.close()


# ---------------------------------------------------------------- files are let go of


def test_every_file_is_closed_when_opening_fails(
    tmp_path: Path, family: Family, descriptors: Callable[[], int]
) -> None:
    family.make(tmp_path / "wrong", 7)
    family.make(tmp_path / "middle", 2, 1, relative=".\\wrong")
    leaf = family.make(tmp_path / "leaf", 3, 2, relative=".\\middle")
    before = descriptors()

    with pytest.raises(ParentMismatchError) as caught:
        open_chain(leaf)

    assert descriptors() == before
    assert caught.value.finding is not None


def test_candidates_that_are_passed_over_are_closed_at_once(
    tmp_path: Path, family: Family, descriptors: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = []
    real = candidates.open_candidate

    def keep(*arguments: Any) -> candidates.Candidate:
        kept.append(real(*arguments))
        return kept[-1]

    for module in (discover, candidates):
        monkeypatch.setattr(module, "open_candidate", keep)
    family.make(tmp_path / "base", 7)
    family.make(tmp_path / "other", 8)
    leaf = family.make(tmp_path / "leaf", 2, 1, relative=".\\base")
    before = descriptors()

    with pytest.raises(ParentMismatchError):
        open_chain(leaf)

    assert len([candidate for candidate in kept if candidate.image]) == 4
    assert descriptors() == before


def test_a_relative_path_is_never_looked_up_in_the_maps(tmp_path: Path, family: Family) -> None:
    (tmp_path / "store" / "dir").mkdir(parents=True)
    family.make(tmp_path / "store" / "dir" / "base.img", 1)
    link = ParentLink((an_identity(1),), (ParentPath(PathKind.RELATIVE_PATH, "C:\\dir\\base.img", "W2ru"),))
    tried = Tried()

    found = candidates.named_candidates(
        link, [tmp_path], [], [PathMap.parse(f"C:={tmp_path / 'store'}")], Folders(), tried
    )

    assert list(found) == []
    assert [what for what, _ in tried.attempts] == [str(tmp_path / "base.img")]


def test_a_chain_holds_one_file_for_each_layer_and_lets_go_of_all(
    tmp_path: Path, family: Family, descriptors: Callable[[], int]
) -> None:
    leaf = family.chain(tmp_path, 5)
    for i in range(5):
        family.make(tmp_path / f"stranger{i}", 100 + i)
    before = descriptors()

    chain = open_chain(leaf)

    assert descriptors() == before + 5
    chain.close()
    assert descriptors() == before


@pytest.fixture
def descriptors() -> Callable[[], int]:
    """How many files this process has open."""
    folder = Path("/proc/self/fd")
    if not folder.is_dir():
        pytest.skip("this platform does not tell")
    return lambda: len(list(folder.iterdir()))


def test_no_unmapped_absolute_path_is_ever_asked_for(
    tmp_path: Path, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaf = family.make(
        tmp_path / "leaf", 2, 1, relative="C:\\claims\\rel.vhd", absolute="\\\\evil.example\\share\\base.vhd"
    )
    seen = record_paths(monkeypatch)

    with pytest.raises(ParentNotFoundError):
        open_chain(leaf)

    assert seen
    assert not [path for path in seen if "evil" in path or "claims" in path or ":" in path]
    assert all(Path(path).parent in (tmp_path, tmp_path.parent) for path in seen)
