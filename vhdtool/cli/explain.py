"""``vhdtool explain LEAF OFFSET``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import click

from vhdtool.cli.options import FILE, SIZE, Access, chain_options, json_option
from vhdtool.cli.output import open_sound, paint, print_json, print_text
from vhdtool.errors import printable

_NUMBER: Final = re.compile(r"0x[0-9a-f]+|[0-9]+", re.IGNORECASE)


@click.command("explain")
@click.argument("leaf", type=FILE)
@click.argument("offset")
@click.option("--sector", "by_sector", is_flag=True, help="OFFSET is the number of a logical sector.")
@chain_options
@json_option
def command(leaf: Path, offset: str, by_sector: bool, access: Access, as_json: bool) -> None:
    """Show how one sector is read: the walk through every layer, down to the bytes.

    OFFSET is a byte of the virtual disk; the sector that holds it is explained.  A place that is damaged is
    explained too; an error that concerns more than single blocks refuses, as with other commands.
    """
    from vhdtool.chain.explain import explain
    from vhdtool.report.explain import explain_json, explain_text

    number = SIZE.convert(offset, None, None)
    if by_sector and not _NUMBER.fullmatch(offset.strip()):
        raise click.UsageError(f"--sector takes the number of a sector, not {printable(offset)!r}")
    with open_sound(leaf, access, allow_damaged=True) as chain:
        at = number * chain.sector_size if by_sector else number
        if at >= chain.virtual_size:
            raise click.UsageError(f"byte {at} is not inside the disk of {chain.virtual_size} bytes")
        explanation = explain(chain, at)
        if as_json:
            print_json(explain_json(explanation))
        else:
            print_text(explain_text(explanation, paint()))
