"""``vhdtool report LEAF``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from vhdtool.cli.options import FILE, Access, chain_options, force_option
from vhdtool.cli.output import print_text
from vhdtool.cli.picture import STDOUT, PageType, begun_file, made_now
from vhdtool.cli.progress import status_line
from vhdtool.errors import VhdtoolError, printable

if TYPE_CHECKING:
    from vhdtool.chain.chain import Chain
    from vhdtool.report.pictures import Made


@click.command("report")
@click.argument("leaf", type=FILE)
@click.option(
    "-o", "--output", type=PageType(), required=True, metavar="FILE.html", help="The page; - is stdout."
)
@force_option
@chain_options
@click.pass_context
def command(ctx: click.Context, leaf: Path, output: Path, force: bool, access: Access) -> None:
    """Write one page about a chain: layers, heat map, cost of depth, findings.

    The page needs no network and no other file.  Findings are collected, also errors; a chain that cannot be
    resolved is shown without its heat map.
    """
    from vhdtool.report.templates import require_templates

    require_templates()
    with access.open_chain(leaf, strict=False) as chain:
        if output == STDOUT:
            print_text(_page(chain, made_now(ctx)))
            return
        with begun_file(output, force=force, inputs=[file.path for file in chain.files()]) as write:
            write(_page(chain, made_now(ctx)))
    print_text(f"{printable(str(output))} written")


def _page(chain: Chain, made: Made) -> str:
    """The page, with as much as the chain's state allows."""
    from vhdtool.report.heatmap import chain_heat_map
    from vhdtool.report.pictures import render_report_page
    from vhdtool.simulate.layers import holding_of
    from vhdtool.simulate.points import cost_of_points

    heat = None
    try:
        with status_line() as tell:
            tell("resolving the disk")
            heat = chain_heat_map(chain, allow_damaged=True)
            tell("counting what reads cost")
            stored = [holding_of(image).bytes_stored for image in chain.images]
            points = cost_of_points(chain)
    except VhdtoolError as error:
        what = "What reads cost is not known" if heat else "The disk cannot be resolved"
        return render_report_page(chain, heat, made, trouble=f"{what}: {error}")
    return render_report_page(chain, heat, made, stored=stored, points=points)
