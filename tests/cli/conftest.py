"""Snapshots of either format."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.helpers import Snapshots, make_snapshots


@pytest.fixture(params=[".vhd", ".vhdx"])
def snapshots(request: pytest.FixtureRequest, tmp_path: Path) -> Snapshots:
    return make_snapshots(tmp_path / "vms", request.param)


@pytest.fixture
def vhds(tmp_path: Path) -> Snapshots:
    return make_snapshots(tmp_path / "vms", ".vhd")
