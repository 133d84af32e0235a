"""``vhdtool merge LEAF TARGET``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vhdtool.cli.exporting import export_options, open_to_export, say_what_was_done, saying_how_to_resume
from vhdtool.cli.faults import say
from vhdtool.cli.options import FILE, Access, chain_options
from vhdtool.cli.progress import progress_bar

if TYPE_CHECKING:
    from vhdtool.cli.progress import ProgressMode
    from vhdtool.export.merge import Room
    from vhdtool.export.options import ExportOptions


@click.command("merge")
@click.argument("leaf", type=FILE)
@click.argument("target", type=FILE)
@click.option(
    "--room-check/--no-room-check",
    default=True,
    show_default=True,
    help="Refuse beforehand when TARGET might not fit.",
)
@export_options
@chain_options
def command(
    leaf: Path,
    target: Path,
    room_check: bool,
    options: ExportOptions,
    progress_mode: ProgressMode,
    access: Access,
) -> None:
    """Fold LEAF and everything that it reads through into one new full image.

    TARGET has LEAF's format and block size and is dynamic, unless something else is asked for.  No input is
    changed or removed: what goes on needing the old images is said.
    """
    from vhdtool.export.merge import merge_image
    from vhdtool.report.sets import merge_lines, room_line

    def tell(room: Room) -> None:
        if sys.stderr is not None and sys.stderr.isatty():
            say(room_line(room))

    with (
        saying_how_to_resume(str(target)),
        progress_bar("merge", progress_mode) as progress,
        open_to_export(leaf, access, options, progress) as chain,
    ):
        report = merge_image(chain, target, options, check_room=room_check, tell=tell, progress=progress)
    say_what_was_done(report.export, str(target))
    for line in merge_lines(report):
        say(f"warning: {line}")
