"""The JSON documents, key by key as they are promised."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.cli.helpers import (
    BLOCK,
    KIB,
    MIB,
    SIZE,
    Snapshots,
    an_identity,
    make_snapshots,
    overwrite,
    run,
    run_json,
)

FINDING = {"code", "severity", "file", "offset", "field", "found", "expected", "message"}
GUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def check_findings(findings: list[dict[str, Any]]) -> None:
    for finding in findings:
        assert set(finding) == FINDING
        assert finding["severity"] in ("info", "warning", "error")
        assert finding["offset"] is None or isinstance(finding["offset"], int)
        assert finding["message"].endswith(f"[{finding['code']}]")


def test_info_has_the_promised_keys(snapshots: Snapshots) -> None:
    document = run_json("info", snapshots.child)

    assert list(document) == [
        "path",
        "format",
        "type",
        "virtual_size",
        "file_size",
        "block_size",
        "logical_sector_size",
        "physical_sector_size",
        "disk_id",
        "write_id",
        "creator",
        "created",
        "blocks",
        "log",
        "parent",
        "findings",
    ]
    assert document["path"] == str(snapshots.child)
    assert document["format"] == snapshots.child.suffix[1:]
    assert document["type"] == "differencing"
    assert document["virtual_size"] == SIZE
    assert document["file_size"] == snapshots.child.stat().st_size
    assert document["block_size"] == BLOCK
    assert document["write_id"] == str(an_identity(2))
    assert GUID.fullmatch(document["disk_id"])
    assert document["blocks"] == {"total": 4, "data": 0, "partial": 2, "zero": 0, "absent": 2}
    assert document["log"]["entries"] == 0
    assert document["parent"]["write_id"] == str(an_identity(1))
    assert document["parent"]["name"] == snapshots.base.name
    assert set(document["parent"]) == {"write_id", "name", "timestamp", "candidates"}
    kinds = {"relative_path", "absolute_path", "volume_path", "name"}
    assert all(set(c) == {"kind", "path"} and c["kind"] in kinds for c in document["parent"]["candidates"])
    check_findings(document["findings"])


def test_info_states_times_in_utc_and_the_state_of_logs(tmp_path: Path) -> None:
    vhd = run_json("info", make_snapshots(tmp_path / "a", ".vhd").base)
    vhdx = run_json("info", make_snapshots(tmp_path / "b", ".vhdx").base)

    assert vhd["created"] == "2024-03-01T12:30:00Z"
    assert vhd["log"] == {"state": "none", "entries": 0}
    assert vhdx["created"] is None
    assert vhdx["log"] == {"state": "clean", "entries": 0}


def test_info_of_a_raw_disk_has_no_identities_and_no_blocks(tmp_path: Path) -> None:
    raw = tmp_path / "disk.img"
    raw.write_bytes(bytes(4096))

    document = run_json("info", raw)

    assert document["format"] == "raw"
    assert document["type"] == "fixed"
    assert document["block_size"] == 0
    assert [document[name] for name in ("disk_id", "write_id", "created", "parent")] == [None] * 4
    assert document["blocks"]["total"] == 0


def test_chain_has_the_promised_keys(snapshots: Snapshots) -> None:
    document = run_json("chain", snapshots.child)

    assert list(document) == ["complete", "virtual_size", "layers", "findings"]
    assert document["complete"] is True
    leaf, base = document["layers"]
    for layer in (leaf, base):
        assert list(layer) == [
            "layer",
            "path",
            "format",
            "type",
            "virtual_size",
            "write_id",
            "parent_write_id",
            "link",
            "found_by",
            "findings",
        ]
    assert (leaf["layer"], leaf["link"], leaf["found_by"]) == (0, "ok", "given")
    assert (base["layer"], base["link"], base["found_by"]) == (1, "base", "relative_path")
    assert leaf["parent_write_id"] == base["write_id"] == str(an_identity(1))
    assert base["parent_write_id"] is None


def test_chain_lists_a_missing_parent_and_succeeds(snapshots: Snapshots) -> None:
    snapshots.base.unlink()

    document = run_json("chain", snapshots.child)

    assert document["complete"] is False
    assert document["layers"][0]["link"] == "missing"
    assert [finding["code"] for finding in document["findings"]] == ["chain.parent.missing"]
    check_findings(document["findings"])
    assert document["layers"][0]["findings"][-1] == document["findings"][0]


def test_tree_has_the_promised_keys(snapshots: Snapshots) -> None:
    document = run_json("tree", snapshots.folder)

    assert list(document) == ["images", "findings"]
    base, child, other = document["images"]
    for image in document["images"]:
        assert list(image) == ["path", "parent", "children", "link", "role"]
    assert base["children"] == [str(snapshots.child), str(snapshots.other)]
    assert (base["parent"], base["link"], base["role"]) == (None, "base", "base")
    assert (child["parent"], child["link"], child["role"]) == (str(snapshots.base), "ok", "leaf")
    assert other["role"] == "leaf"


def test_tree_reports_orphans_as_findings(snapshots: Snapshots) -> None:
    snapshots.base.unlink()

    document = run_json("tree", snapshots.folder)

    assert [image["role"] for image in document["images"]] == ["orphan", "orphan"]
    check_findings(document["findings"])
    errors = [finding["code"] for finding in document["findings"] if finding["severity"] == "error"]
    assert errors == ["chain.parent.missing"] * 2


def test_check_has_the_promised_keys(vhds: Snapshots) -> None:
    overwrite(vhds.base, -512 + 64, b"\0\0\0\0")

    document = run_json("check", vhds.base)

    assert list(document) == ["findings", "errors", "warnings", "images"]
    assert document["images"] == 1
    assert (document["errors"], document["warnings"]) == (0, 1)
    check_findings(document["findings"])
    assert "vhd.footer.end_bad" in [finding["code"] for finding in document["findings"]]


def test_map_is_an_array_in_the_schema_of_qemu_img(snapshots: Snapshots) -> None:
    extents = run_json("map", snapshots.child)

    position = 0
    for extent in extents:
        assert extent["start"] == position
        position += extent["length"]
        assert extent["present"] is True
        assert extent["zero"] is not extent["data"]
        keys = {"start", "length", "depth", "present", "zero", "data"}
        assert set(extent) == (keys | {"offset", "filename"} if extent["data"] else keys)
    assert position == SIZE
    origins = [e["depth"] if e["data"] else None for e in extents for _ in range(e["length"] // (BLOCK // 2))]
    assert origins == [0, 1, 1, 1, 0, None, None, None]
    assert extents[0]["filename"] == str(snapshots.child)


@pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")
def test_map_of_a_single_image_is_that_of_qemu_img(tmp_path: Path) -> None:
    raw = tmp_path / "disk.raw"
    raw.write_bytes(bytes(3 * MIB) + b"x" * (5 * MIB) + bytes(10 * MIB))
    image = tmp_path / "disk.vhd"
    run("create", image, "--from", raw)

    theirs = json.loads(
        subprocess.run(
            ["qemu-img", "map", "--output=json", "-f", "vpc", str(image)], capture_output=True, check=True
        ).stdout
    )

    # The two may split runs differently.
    assert piecewise(run_json("map", image)) == piecewise(theirs)


def piecewise(extents: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """What is said of every 512 KiB."""
    rows = []
    for extent in extents:
        for start in range(extent["start"], extent["start"] + extent["length"], 512 * KIB):
            offset = extent.get("offset")
            place = None if offset is None else offset + start - extent["start"]
            flags = (extent["depth"], extent["present"], extent["zero"], extent["data"])
            rows.append((start, place, *flags))
    return rows


def test_compare_has_the_promised_keys(snapshots: Snapshots) -> None:
    same = run_json("compare", snapshots.base, snapshots.other)
    different = run_json("compare", snapshots.base, snapshots.child, code=1)

    for document in (same, different):
        assert {"equal", "first_difference", "ranges", "bytes"} <= set(document)
    assert (same["equal"], same["first_difference"], same["ranges"], same["bytes"]) == (True, None, [], 0)
    assert different["equal"] is False
    assert different["first_difference"] == 0
    assert different["bytes"] == sum(r["length"] for r in different["ranges"])
    assert {"start": 2 * BLOCK, "length": BLOCK // 2} in different["ranges"]


def test_diff_has_the_promised_keys(snapshots: Snapshots) -> None:
    document = run_json("diff", snapshots.child, snapshots.other)

    assert {"virtual_size", "common_layers", "ranges", "bytes"} <= set(document)
    assert document["virtual_size"] == SIZE
    assert document["common_layers"] == [str(snapshots.base)]
    assert document["ranges"] == [
        {"start": 0, "length": BLOCK // 2},
        {"start": 2 * BLOCK, "length": BLOCK // 2},
    ]
    assert document["bytes"] == BLOCK


def test_diff_lists_only_real_differences_when_content_is_verified(tmp_path: Path) -> None:
    snapshots = make_snapshots(tmp_path)
    twin = tmp_path / "twin.vhdx"
    shutil.copyfile(snapshots.base, twin)

    can = run_json("diff", snapshots.base, twin)
    do = run_json("diff", snapshots.base, twin, "--verify-content")

    assert can["bytes"] == 2 * BLOCK
    assert (do["ranges"], do["bytes"]) == ([], 0)


def test_verify_reports_what_is_not_as_exported(snapshots: Snapshots, tmp_path: Path) -> None:
    target = tmp_path / "disk.raw"
    run("export", snapshots.child, target)

    good = run_json("verify", target)
    overwrite(target, BLOCK, b"changed")
    bad = run_json("verify", target, code=1)

    assert (good["ok"], good["bad_ranges"], good["bad_bytes"]) == (True, [], 0)
    assert bad["ok"] is False
    assert bad["bad_ranges"] == [{"start": 0, "length": 2 * MIB}]
    check_findings(bad["findings"])
    assert run_json("verify", target, "--against", snapshots.child, code=1)["first_difference"] == BLOCK


def test_create_and_snapshot_say_what_they_made(tmp_path: Path) -> None:
    base = run_json("create", tmp_path / "b.vhdx", "--size", "8MiB", "--block-size", "1MiB")
    child = run_json("snapshot", tmp_path / "b.vhdx", tmp_path / "c.avhdx")

    info = run_json("info", tmp_path / "c.avhdx")
    assert (base["type"], base["virtual_size"], base["block_size"]) == ("dynamic", 8 * MIB, MIB)
    assert child["parent"] == ".\\b.vhdx"
    assert info["parent"]["write_id"] == base["write_id"]
    assert info["disk_id"] == base["disk_id"]


def test_json_survives_names_that_are_no_text(tmp_path: Path) -> None:
    snapshots = make_snapshots(tmp_path / "a")
    strange = tmp_path / "a" / "caf\udce9.vhdx"
    try:
        snapshots.base.rename(strange)
    except (OSError, UnicodeError):
        pytest.skip("this file system takes text only")

    assert run_json("info", strange)["path"] == str(strange)
