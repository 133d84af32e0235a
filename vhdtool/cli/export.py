"""``vhdtool export LEAF TARGET``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from vhdtool.cli.exporting import export_options, open_to_export, say_what_was_done, saying_how_to_resume
from vhdtool.cli.options import FILE, Access, chain_options, json_option
from vhdtool.cli.output import refuse_folder, require_stdout
from vhdtool.cli.progress import progress_bar
from vhdtool.errors import printable

if TYPE_CHECKING:
    from vhdtool.cli.progress import ProgressMode
    from vhdtool.export.options import ExportOptions


@click.command("export")
@click.argument("leaf", type=FILE, metavar="LEAF")
@click.argument("target", type=click.Path(allow_dash=True), metavar="TARGET")
@click.option("--base", type=FILE, help="Write only what differs from this image or earlier export.")
@click.option(
    "--compare-content",
    is_flag=True,
    help="With --base: leave out what was written and is the same as before.",
)
@click.option("--azure", is_flag=True, help="A fixed VHD of whole MiB, as Azure takes it.")
@click.option(
    "--all",
    "all_points",
    is_flag=True,
    help="LEAF is a folder: every point in time in it, to the folder TARGET.",
)
@click.option(
    "--layout",
    type=click.Choice(["increments", "images"]),
    show_default="increments",
    help="With --all: differencing images, or raw ones that share storage where the file system can.",
)
@export_options
@chain_options
@json_option
def command(
    leaf: Path,
    target: str,
    all_points: bool,
    layout: Literal["increments", "images"] | None,
    options: ExportOptions,
    progress_mode: ProgressMode,
    access: Access,
    as_json: bool,
) -> None:
    """Write the disk that LEAF's guest would see to TARGET, as one image.

    TARGET appears under its name when it is whole, and its manifest beside it.  Zeros take no space.  With -
    for TARGET the disk goes to stdout, and the digests to stderr.

    With --base only what differs from another point in time is written, as a differencing image.  With --all
    LEAF is a folder, and every point in time below it goes to the folder TARGET.
    """
    try:
        options.check()
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    if all_points:
        if leaf.is_file():
            raise click.UsageError(f"--all takes a folder, and {printable(str(leaf))} is a file")
        from vhdtool.cli.sets import run_all

        folders, destination = [leaf], Path(target)
        click.get_current_context().exit(
            run_all(
                folders,
                destination,
                options,
                layout=layout or "increments",
                access=access,
                progress_mode=progress_mode,
                as_json=as_json,
            )
        )
    if layout is not None:
        raise click.UsageError("--layout goes with --all")
    if as_json:
        raise click.UsageError("--json goes with --all; what is known of one export stands in its manifest")
    refuse_folder(leaf, "--all exports every point in time in a folder")
    from vhdtool.export.job import export_chain

    if target == "-":
        require_stdout()
    with (
        saying_how_to_resume(target),
        progress_bar("export", progress_mode) as progress,
        open_to_export(leaf, access, options, progress) as chain,
    ):
        report = export_chain(
            chain,
            target,
            options,
            search=access.search,
            maps=access.path_maps(),
            ignore_checksums=access.ignore_checksums,
            allow_mismatch=access.allow_mismatch,
            progress=progress,
        )
    say_what_was_done(report, target)
