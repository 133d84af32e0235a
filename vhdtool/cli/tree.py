"""``vhdtool tree FOLDER...``."""

from __future__ import annotations

from pathlib import Path

import click

from vhdtool.cli.options import FILE, Access, json_option, tree_options
from vhdtool.cli.output import can_draw, paint, print_json, print_text


@click.command("tree")
@click.argument("folders", metavar="FOLDER...", nargs=-1, required=True, type=FILE)
@click.option("--no-recursion", is_flag=True, help="Do not look into the folders below.")
@tree_options
@json_option
def command(folders: tuple[Path, ...], no_recursion: bool, access: Access, as_json: bool) -> None:
    """Draw every image below the folders as a forest.

    Only headers are read.  An orphan needs a parent that is not here.
    """
    from vhdtool.chain.tree import find_snapshots
    from vhdtool.report.tree import ASCII, BOXES, tree_json, tree_text

    tree = find_snapshots(
        *folders,
        maps=access.path_maps(),
        log=access.log,
        ignore_checksums=access.ignore_checksums,
        recursive=not no_recursion,
    )
    if as_json:
        print_json(tree_json(tree))
        return
    boxes = BOXES if can_draw("".join((BOXES.fork, BOXES.last, BOXES.through))) else ASCII
    print_text(tree_text(tree, boxes, paint()))
