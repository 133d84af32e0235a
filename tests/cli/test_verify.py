"""``verify`` from the command line: what its options do, and what it says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.helpers import Snapshots, overwrite, run, run_json


def exported(snapshots: Snapshots, folder: Path) -> Path:
    """The child's disk as a raw image with its manifest."""
    run("export", snapshots.child, folder / "x.raw")
    return folder / "x.raw"


@pytest.mark.parametrize("text", ["100%", "100", "50.5 %", "0.001%"])
def test_a_sample_is_told_as_one(snapshots: Snapshots, tmp_path: Path, text: str) -> None:
    target = exported(snapshots, tmp_path)

    done = run("verify", target, "--sample", text, "--seed", "7")
    document = run_json("verify", target, "--sample", text, "--seed", "7")

    assert "a sample: " in done.stdout
    assert "by seed 7; the rest was not read" in done.stdout
    assert document["sample"]["seed"] == 7
    assert 1 <= document["sample"]["chunks"] <= document["sample"]["of"]


@pytest.mark.parametrize("text", ["0%", "101%", "-1", "half", "1e1", "", "50%%", "\x1b[2J"])
def test_2_a_sample_that_is_no_share(snapshots: Snapshots, text: str) -> None:
    result = run("verify", snapshots.base, "--sample", text, code=2)

    assert "no share" in result.stderr
    assert "\x1b" not in result.stderr


@pytest.mark.parametrize(
    "options",
    [
        ["--seed", "5"],
        ["--against", "y", "--sample", "5%"],
        ["--against", "y", "--key", "k"],
        ["--against", "y", "--manifest", "m"],
        ["--raw"],
        ["--map", "nothing"],
    ],
    ids=" ".join,
)
def test_2_options_that_do_not_go_together(options: list[str]) -> None:
    assert run("verify", "x", *options, code=2).stdout == ""


def test_66_a_folder_to_search_in_that_is_not_there(snapshots: Snapshots, tmp_path: Path) -> None:
    run("verify", exported(snapshots, tmp_path), "--search", tmp_path / "none", code=66)


def test_the_document_names_all_that_was_looked_at(snapshots: Snapshots, tmp_path: Path) -> None:
    target = tmp_path / "x.raw"
    run("export", snapshots.child, target, "--hash", "md5,sha256")

    document = run_json("verify", target)

    assert document["ok"] is True
    assert (document["bad_digests"], document["unchecked_digests"]) == ([], [])
    assert (document["sample"], document["signer"], document["parent"]) == (None, None, None)
    assert document["signature"] == "sealed, not signed"
    assert run_json("verify", target, "--sample", "1%")["unchecked_digests"] == ["md5", "sha256"]


def test_65_a_manifest_with_a_flipped_bit_is_refused_with_its_place(
    snapshots: Snapshots, tmp_path: Path
) -> None:
    target = exported(snapshots, tmp_path)
    manifest = Path(f"{target}.manifest.json")
    byte = manifest.read_bytes()[200]
    overwrite(manifest, 200, bytes([byte ^ 8]))

    result = run("verify", target, code=65)

    assert (
        f"{manifest.name} at 0xc8: found {byte ^ 8:#x}, expected {byte:#x} [manifest.seal]" in result.stderr
    )


def test_65_a_manifest_that_is_not_signed_by_the_key_that_was_asked_for(
    snapshots: Snapshots, tmp_path: Path
) -> None:
    pytest.importorskip("cryptography", reason="the extra 'sign' is not installed")
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = tmp_path / "key.pub"
    public = Ed25519PrivateKey.from_private_bytes(b"k" * 32).public_key()
    key.write_bytes(public.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH))

    assert (
        "[manifest.signature]" in run("verify", exported(snapshots, tmp_path), "--key", key, code=65).stderr
    )
    run("verify", tmp_path / "x.raw", "--key", tmp_path / "none", code=66)
    key.write_text("no key")
    assert "no key that can be read" in run("verify", tmp_path / "x.raw", "--key", key, code=65).stderr


def test_progress_for_programs_is_of_the_phase_verify(snapshots: Snapshots, tmp_path: Path) -> None:
    target = exported(snapshots, tmp_path)

    for options in ([], ["--against", snapshots.child]):
        result = run("verify", target, *options, "--progress", "json")
        lines = [json.loads(line) for line in result.stderr.splitlines()]
        assert lines
        assert {line["phase"] for line in lines} == {"verify"}
