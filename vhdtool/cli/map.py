"""``vhdtool map LEAF``."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vhdtool.cli.options import FILE, Access, chain_options, engine_option, force_option, json_option
from vhdtool.cli.output import can_draw, open_sound, paint, print_pieces, print_text, shade
from vhdtool.cli.picture import begun_picture, made_now, picture_option, suffix_of
from vhdtool.errors import printable

if TYPE_CHECKING:
    from vhdtool.chain.chain import Chain
    from vhdtool.chain.engine import Engine


@click.command("map")
@click.argument("leaf", type=FILE)
@picture_option("a heat map of the disk, coloured by layer,")
@force_option
@engine_option
@chain_options
@json_option
@click.pass_context
def command(
    ctx: click.Context,
    leaf: Path,
    picture: Path | None,
    force: bool,
    engine: Engine,
    access: Access,
    as_json: bool,
) -> None:
    """List the virtual disk as extents with their origin.

    No payload is read.  The JSON is that of ``qemu-img map --output=json``; depth is the layer, LEAF is 0.
    With --picture the heat map is written instead of the table.
    """
    from vhdtool.report.extents import map_json, map_text, merged_runs, placed_runs

    with open_sound(leaf, access) as chain:
        if picture is not None:
            _write_picture(chain, picture, ctx, force=force)
            if not as_json:
                print_text(f"{printable(str(picture))} written")
                return
        runs = placed_runs(
            merged_runs(chain.windows(engine=engine)), [image.source for image in chain.images]
        )
        files = [str(layer.path) for layer in chain.layers]
        if as_json:
            print_pieces(map_json(runs, files))
        else:
            _print_strip(chain)
            print_pieces(map_text(runs, files, chain.virtual_size, paint()))


def _write_picture(chain: Chain, picture: Path, ctx: click.Context, *, force: bool) -> None:
    from vhdtool.report.heatmap import chain_heat_map
    from vhdtool.report.pictures import render_map_page

    paths = [str(layer.path) for layer in chain.layers]
    with begun_picture(picture, force=force, inputs=[file.path for file in chain.files()]) as write:
        write(render_map_page(chain_heat_map(chain), paths, made_now(ctx), suffix=suffix_of(picture)))


def _print_strip(chain: Chain) -> None:
    """The disk at a glance, where there are colours to show it in."""
    shaded = shade()
    if shaded is None:
        return
    from vhdtool.report.heatmap import chain_heat_map
    from vhdtool.report.strip import strip_text

    paths = [str(layer.path) for layer in chain.layers]
    width = shutil.get_terminal_size().columns
    dot = "·" if can_draw("·") else "."
    print_text(strip_text(chain_heat_map(chain), paths, width, shaded, dot=dot) + "\n")
