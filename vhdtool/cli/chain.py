"""``vhdtool chain LEAF``."""

from __future__ import annotations

from pathlib import Path

import click

from vhdtool.cli.options import FILE, Access, chain_options, json_option
from vhdtool.cli.output import paint, print_json, print_text


@click.command("chain")
@click.argument("leaf", type=FILE)
@chain_options
@json_option
def command(leaf: Path, access: Access, as_json: bool) -> None:
    """Show LEAF and every parent it reads through.

    Each link is shown with its verdict and with how the parent was found; LEAF is layer 0.
    """
    with access.open_chain(leaf, strict=False) as chain:
        from vhdtool.report.chain import chain_json, chain_text

        if as_json:
            print_json(chain_json(chain))
        else:
            print_text(chain_text(chain, paint()))
