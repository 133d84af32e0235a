"""``vhdtool diff A B``."""

from __future__ import annotations

from pathlib import Path

import click

from vhdtool.cli.options import FILE, Access, chain_options, json_option
from vhdtool.cli.output import open_both_sound, paint, print_json, print_text
from vhdtool.cli.progress import progress_bar


@click.command("diff")
@click.argument("a", type=FILE)
@click.argument("b", type=FILE)
@click.option("--verify-content", is_flag=True, help="Read the ranges, and list only what really differs.")
@chain_options
@json_option
def command(a: Path, b: Path, verify_content: bool, access: Access, as_json: bool) -> None:
    """List the ranges that can differ between two points in time, from metadata alone.

    Bytes that both take from the same place of the same file are equal, and so are zeros.
    """
    from vhdtool.chain.diff import diff_chains
    from vhdtool.report.ranges import diff_json, diff_text

    with open_both_sound(a, b, access) as (chain_a, chain_b):
        difference = diff_chains(chain_a, chain_b)
        verified = None
        if verify_content:
            from vhdtool.export.proof.compare import compare_contents

            with progress_bar("diff") as progress:
                verified = compare_contents(chain_a, chain_b, progress=progress)
    if as_json:
        print_json(diff_json(difference, verified))
    else:
        print_text(diff_text(difference, verified, paint()))
