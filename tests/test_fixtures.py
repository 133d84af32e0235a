"""The committed images are what make.py makes, and every command says of them what it is known to be."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

from fixtures import make
from fixtures.unpack import PACKED, unpack
from vhdtool import open_chain


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fixtures")
    unpack(folder)
    return folder


def golden(name: str) -> Any:
    return json.loads((make.GOLDEN / name).read_text(encoding="utf-8"))


def search(images: Path, name: str) -> list[Path]:
    return [images / place for place in make.SEARCH[name]]


def test_making_the_images_again_gives_the_same_bytes(images: Path, tmp_path: Path) -> None:
    points = make.make_images(tmp_path)

    assert {point.name for point in points} == set(make.IMAGES)
    for point in points:
        assert point.path.read_bytes() == (images / point.name).read_bytes(), point.name
        digest = hashlib.sha256(point.content).hexdigest()
        assert digest == golden(make.golden_name(point.name))["content_sha256"]


def test_nothing_is_committed_that_the_list_of_sources_does_not_name(images: Path) -> None:
    text = (make.HERE / "SOURCES.md").read_text(encoding="utf-8")
    listed = {
        name: (int(size), digest)
        for name, size, digest in re.findall(
            r"^\| `(.+)` \| (\d+) \| `([0-9a-f]{64})` \|$", text, re.MULTILINE
        )
    }

    found = {
        name: (path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in images.rglob("*")
        if path.is_file()
        for name in [path.relative_to(images).as_posix()]
    }

    assert found == listed
    assert set(found) == set(make.IMAGES)


def test_the_committed_images_are_small() -> None:
    assert sum(path.stat().st_size for path in PACKED.rglob("*") if path.is_file()) < 1 << 20


@pytest.mark.parametrize("name", make.IMAGES)
def test_every_point_in_time_reads_as_what_was_written(images: Path, name: str) -> None:
    with open_chain(images / name, search=search(images, name)) as chain:
        content = chain.read(0, chain.virtual_size)

    assert hashlib.sha256(content).hexdigest() == golden(make.golden_name(name))["content_sha256"]


@pytest.mark.parametrize("name", make.IMAGES)
def test_info_chain_and_map_say_what_they_said_before(images: Path, name: str) -> None:
    expected = golden(make.golden_name(name))
    del expected["content_sha256"]

    assert make.describe(images, name) == expected


@pytest.mark.parametrize("command", ["tree", "check"])
def test_folders_are_seen_as_they_were_before(images: Path, command: str) -> None:
    assert make.run_json(images, command, ".") == golden(f"{command}.json")


def test_without_its_log_the_powered_off_machine_reads_as_its_parent(images: Path) -> None:
    with (
        open_chain(images / make.WEB_WEDNESDAY, log="before") as before,
        open_chain(images / make.WEB_WEDNESDAY) as after,
        open_chain(images / make.WEB_TUESDAY) as parent,
    ):
        disk = parent.read(0, parent.virtual_size)

        assert before.read(0, before.virtual_size) == disk
        assert after.read(0, after.virtual_size) != disk


def test_the_moved_base_is_found_by_its_identity_only(images: Path) -> None:
    with open_chain(images / make.DB_TODAY, strict=False) as lost:
        assert not lost.complete

    with open_chain(images / make.DB_TODAY, search=[images / "archive"]) as found:
        assert [str(layer.found_by) for layer in found.layers] == ["given", "relative_path", "identity"]
