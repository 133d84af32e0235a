"""``vhdtool compare A B``."""

from __future__ import annotations

from pathlib import Path

import click

from vhdtool.cli.options import FILE, Access, chain_options, json_option
from vhdtool.cli.output import open_both_sound, paint, print_json, print_text
from vhdtool.cli.progress import progress_bar


@click.command("compare")
@click.argument("a", type=FILE)
@click.argument("b", type=FILE)
@chain_options
@json_option
@click.pass_context
def command(ctx: click.Context, a: Path, b: Path, access: Access, as_json: bool) -> None:
    """Compare the virtual content of two images or points in time.

    What both read from one place of one file is equal, and is not read.  The exit code is 1 when they differ.
    """
    from vhdtool.export.proof.compare import compare_contents
    from vhdtool.report.ranges import compare_json, compare_text

    with open_both_sound(a, b, access) as (chain_a, chain_b), progress_bar("compare") as progress:
        comparison = compare_contents(chain_a, chain_b, progress=progress)
    if as_json:
        print_json(compare_json(comparison))
    else:
        print_text(compare_text(comparison, paint()))
    ctx.exit(comparison.exit_code)
