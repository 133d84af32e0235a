"""The lock files hold what pyproject.toml asks for: versions and hashes, and no address."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))
PIN = re.compile(r"^([a-z0-9-]+)==([^ ]+)", re.MULTILINE)


def dependencies() -> dict[str, str]:
    """Name and lowest version of what the package itself depends on."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = [re.match(r"([a-z0-9-]+)>=([0-9.]+)", line) for line in project["dependencies"]]
    assert all(found)
    return {match[1]: match[2] for match in found if match}


def versions(name: str) -> dict[str, set[str]]:
    text = (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8")
    pins: dict[str, set[str]] = {}
    for package, version in PIN.findall(text):
        pins.setdefault(package, set()).add(version)
    return pins


def release(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.match(r"[0-9.]+", version)[0].rstrip(".").split(".")))  # type: ignore[index]


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.name)
def test_a_lock_file_has_a_hash_for_every_package_and_no_address(path: Path) -> None:
    text = path.read_text(encoding="utf-8")

    assert "://" not in text
    for entry in re.split(r"\n(?=[a-z])", text):
        assert "--hash=sha256:" in entry, entry


@pytest.mark.parametrize("name", ["run", "dev", "lowest"])
def test_every_dependency_is_locked_within_its_bounds(name: str) -> None:
    locked = versions(name)

    for package, lowest in dependencies().items():
        assert all(release(version) >= release(lowest) for version in locked[package])


def test_the_lowest_versions_are_the_ones_that_are_promised() -> None:
    locked = versions("lowest")

    for package, lowest in dependencies().items():
        (version,) = locked[package]
        padded = release(lowest) + (0,) * (len(release(version)) - len(release(lowest)))
        assert release(version) == padded, package


def test_developers_run_the_package_with_what_users_run_it_with() -> None:
    run, dev = versions("run"), versions("dev")

    assert {package: dev[package] for package in run} == run
