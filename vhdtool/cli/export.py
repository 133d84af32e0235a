"""``vhdtool export LEAF TARGET``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from vhdtool.cli.faults import say
from vhdtool.cli.options import FILE, Access, DigestsType, chain_options, engine_option, force_option
from vhdtool.cli.output import open_sound, print_file_names, require_stdout
from vhdtool.cli.progress import progress_bar

if TYPE_CHECKING:
    from vhdtool.chain.engine import Engine


@click.command("export")
@click.argument("leaf", type=FILE)
@click.argument("target", type=click.Path(allow_dash=True))
@click.option("--format", "format_", type=click.Choice(["raw"]), default="raw", show_default=True)
@click.option(
    "--damaged",
    type=click.Choice(["refuse", "zero"]),
    default="refuse",
    show_default=True,
    help="Refuse a disk with ranges that cannot be read, or export zeros there and list them.",
)
@click.option("--manifest", type=FILE, help="Where the manifest goes; TARGET.manifest.json without it.")
@click.option(
    "--hash",
    "hashes",
    type=DigestsType(),
    default="",
    metavar="LIST",
    help="Digests of the whole disk: md5, sha1, sha256, sha512, blake2b, blake3; with commas between.",
)
@engine_option
@force_option
@chain_options
def command(
    leaf: Path,
    target: str,
    format_: Literal["raw"],
    damaged: Literal["refuse", "zero"],
    manifest: Path | None,
    hashes: tuple[str, ...],
    engine: Engine,
    force: bool,
    access: Access,
) -> None:
    """Write the disk that LEAF's guest would see to TARGET, as one image.

    TARGET appears under its name when it is whole, and its manifest beside it.  Zeros become holes.  With -
    for TARGET the disk goes to stdout, and the digests to stderr.
    """
    from vhdtool.export.job import export_image
    from vhdtool.report.export import damaged_lines, digest_lines, summary

    is_stream = target == "-"
    if is_stream:
        require_stdout()
    with (
        open_sound(leaf, access, allow_damaged=damaged == "zero") as chain,
        progress_bar("export") as progress,
    ):
        report = export_image(
            chain,
            target,
            format=format_,
            force=force,
            damaged=damaged,
            hashes=hashes,
            manifest=manifest,
            engine=engine,
            progress=progress,
        )
    for line in damaged_lines(report):
        say(f"warning: {line}")
    for line in digest_lines(report.digests, target):
        (say if is_stream else print_file_names)(line)
    if sys.stderr is not None and sys.stderr.isatty():
        say(summary(report))
