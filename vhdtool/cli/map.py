"""``vhdtool map LEAF``."""

from __future__ import annotations

from pathlib import Path

import click

from vhdtool.cli.options import FILE, Access, chain_options, json_option
from vhdtool.cli.output import open_sound, paint, print_pieces


@click.command("map")
@click.argument("leaf", type=FILE)
@chain_options
@json_option
def command(leaf: Path, access: Access, as_json: bool) -> None:
    """List the virtual disk as extents with their origin.

    No payload is read.  The JSON is that of ``qemu-img map --output=json``; depth is the layer, LEAF is 0.
    """
    from vhdtool.report.extents import map_json, map_text, merged_runs, placed_runs

    with open_sound(leaf, access) as chain:
        runs = placed_runs(merged_runs(chain.windows()), [image.source for image in chain.images])
        files = [str(layer.path) for layer in chain.layers]
        if as_json:
            print_pieces(map_json(runs, files))
        else:
            print_pieces(map_text(runs, files, chain.virtual_size, paint()))
