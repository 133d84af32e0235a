"""``vhdtool info IMAGE``."""

from __future__ import annotations

from pathlib import Path

import click

from vhdtool.cli.options import FILE, Access, image_options, json_option
from vhdtool.cli.output import paint, print_json, print_text
from vhdtool.formats.registry import open_image
from vhdtool.report.info import info_json, info_text


@click.command("info")
@click.argument("image", type=FILE)
@image_options
@json_option
def command(image: Path, access: Access, as_json: bool) -> None:
    """Show one image's headers, sizes, identities and findings.

    Its parent is never opened.
    """
    opened = open_image(image, access.image_options, strict=False)
    try:
        counts = opened.counts()
        if as_json:
            print_json(info_json(opened, str(image), counts))
        else:
            print_text(info_text(opened, str(image), counts, paint()))
    finally:
        opened.close()
