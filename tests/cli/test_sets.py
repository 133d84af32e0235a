"""``merge``, ``export --all``, ``verify --set`` and increments as a user types them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.helpers import process, run, run_json
from tests.export.kit import names_in
from tests.export.test_increment import STYLES, a_tree, content
from tests.generated import Point


@pytest.fixture
def tree(tmp_path: Path) -> dict[str, Point]:
    (tmp_path / "vms").mkdir()
    return a_tree(tmp_path / "vms", STYLES["vhdx"], 61)


def test_a_set_is_made_gone_on_with_and_verified(tree: dict[str, Point], tmp_path: Path) -> None:
    vms, dest = tmp_path / "vms", tmp_path / "backup"

    made = run_json("export", "--all", vms, dest)
    kept = run_json("export", "--all", vms, dest, "--resume")
    found = run_json("verify", "--set", dest)

    assert [point["kept"] for point in made["points"]] == [False] * 6
    assert [point["kept"] for point in kept["points"]] == [True] * 6
    assert found["ok"]
    assert {image["path"] for image in found["images"]} == {point["target"] for point in made["points"]}
    disks = {str(point.path): point.disk.tobytes() for point in tree.values()}
    for point in made["points"]:
        assert content(dest / point["target"]) == disks[point["point_in_time"]]


def test_images_of_a_set_are_raw_disks(tree: dict[str, Point], tmp_path: Path) -> None:
    text = run("export", "--all", tmp_path / "vms", tmp_path / "backup", "--layout", "images").stdout

    assert "6 images in" in text
    assert (tmp_path / "backup" / "niece.avhdx.raw").read_bytes() == tree["niece"].disk.tobytes()


def test_what_is_not_in_a_set_is_told_with_an_exit_code(tree: dict[str, Point], tmp_path: Path) -> None:
    tree["aunt"].path.unlink()

    done = run("export", "--all", tmp_path / "vms", tmp_path / "backup", code=66)

    assert "niece.avhdx is not exported" in done.stderr
    assert "not in the set" in run("verify", "--set", tmp_path / "backup").stdout


@pytest.mark.parametrize(
    ("content", "code"), [(b"vhdxfile", "file.too_short"), (b"nonsense", "tree.stranger")]
)
def test_what_cannot_be_read_as_an_image_is_not_passed_over_without_a_word(
    tree: dict[str, Point], tmp_path: Path, content: bytes, code: str
) -> None:
    tree["two"].path.write_bytes(content * 128)

    done = run("export", "--all", tmp_path / "vms", tmp_path / "backup", code=65)

    assert done.stderr.count("two.avhdx is not exported") == 1
    assert done.stderr.count(code) == 1
    assert "not in the set" in run("verify", "--set", tmp_path / "backup").stdout


def test_a_set_in_which_something_is_wrong_ends_with_exit_code_1(
    tree: dict[str, Point], tmp_path: Path
) -> None:
    dest = tmp_path / "backup"
    run("export", "--all", tmp_path / "vms", dest)
    (dest / "two.avhdx").write_bytes((dest / "one.avhdx").read_bytes())

    done = run("verify", "--set", dest, code=1)

    assert "two.avhdx: NOT as exported" in done.stdout
    assert "1 of 6 images" in done.stdout


def test_a_sample_of_a_set_is_told_with_its_seed(tree: dict[str, Point], tmp_path: Path) -> None:
    run("export", "--all", tmp_path / "vms", tmp_path / "backup")

    text = run("verify", "--set", tmp_path / "backup", "--sample", "10%", "--seed", 7).stdout
    sample = run_json("verify", "--set", tmp_path / "backup", "--sample", "10%")["sample"]

    assert "by seed 7; the rest was not read" in text
    assert 0 < sample["chunks"] <= sample["of"]


@pytest.mark.parametrize(
    "options",
    [
        ["--azure"],
        ["--keep-id"],
        ["--no-manifest"],
        ["--search", "."],
        ["--format", "raw"],
        ["--layout", "images", "--format", "vhd"],
    ],
    ids=" ".join,
)
def test_options_of_single_exports_are_wrong_usage_with_all(
    options: list[str], tree: dict[str, Point], tmp_path: Path
) -> None:
    run("export", "--all", tmp_path / "vms", tmp_path / "backup", *options, code=2)

    assert not (tmp_path / "backup").exists()


@pytest.mark.parametrize("options", [["--raw"], ["--against", "x"], ["--manifest", "x"], ["--search", "."]])
def test_options_of_single_images_are_wrong_usage_with_a_set(options: list[str], tmp_path: Path) -> None:
    run("verify", "--set", tmp_path, *options, code=2)


def test_no_set_and_no_folder_are_missing_files(tmp_path: Path) -> None:
    run("verify", "--set", tmp_path, code=66)
    run("export", "--all", tmp_path / "nothing", tmp_path / "backup", code=66)
    run("export", "--all", tmp_path, tmp_path.parent / "elsewhere", code=66)


def test_a_merge_says_who_goes_on_needing_the_old_files(tree: dict[str, Point], tmp_path: Path) -> None:
    done = run("merge", tree["two"].path, tmp_path / "merged.vhdx")

    assert "cousin.avhdx goes on needing" in done.stderr
    assert content(tmp_path / "merged.vhdx") == tree["two"].disk.tobytes()
    run("verify", tmp_path / "merged.vhdx")
    assert run_json("info", tmp_path / "merged.vhdx")["type"] == "dynamic"


def test_a_merge_with_the_leafs_identity_says_so(tree: dict[str, Point], tmp_path: Path) -> None:
    done = run("merge", tree["two"].path, tmp_path / "merged.vhdx", "--keep-id")

    assert "has the identities of the leaf" in done.stderr
    ids = [run_json("info", path)["write_id"] for path in (tree["two"].path, tmp_path / "merged.vhdx")]
    assert ids[0] == ids[1]


def test_a_merge_into_one_of_its_layers_is_refused(tree: dict[str, Point], tmp_path: Path) -> None:
    names = names_in(tmp_path / "vms")

    run("merge", tree["two"].path, tree["base"].path, "--force", code=73)

    assert names_in(tmp_path / "vms") == names
    assert content(tree["two"].path) == tree["two"].disk.tobytes()


def test_an_increment_is_made_and_verified_by_other_processes(tree: dict[str, Point], tmp_path: Path) -> None:
    full, increment = tmp_path / "full.vhdx", tmp_path / "increment.vhdx"

    process("export", tree["base"].path, full)
    process("export", tree["one"].path, increment, "--base", f"{full}.manifest.json")
    tree["one"].path.unlink()

    process("verify", increment)
    assert content(increment) == tree["one"].disk.tobytes()
