"""``vhdtool snapshot PARENT CHILD``."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

import click

from vhdtool.cli.options import (
    FILE,
    SIZE,
    Access,
    force_option,
    identity_options,
    image_options,
    json_option,
    new_identities,
)
from vhdtool.cli.output import print_json, print_text, print_warnings


@click.command("snapshot")
@click.argument("parent", type=FILE)
@click.argument("child", type=FILE)
@click.option("--size", type=SIZE, help="Of the child's disk; the parent's without it, never less.")
@click.option("--block-size", type=SIZE, help="2 MiB without it.")
@identity_options
@force_option
@json_option
@image_options
def command(
    parent: Path,
    child: Path,
    size: int | None,
    block_size: int | None,
    disk_id: UUID | None,
    write_id: UUID | None,
    force: bool,
    as_json: bool,
    access: Access,
) -> None:
    """Make a new differencing child of an image.

    CHILD is in PARENT's format, and empty: it reads as PARENT does.  PARENT is not changed, and must not be
    from now on.
    """
    from vhdtool.export.create import snapshot_image
    from vhdtool.report.create import create_json, create_text

    report = snapshot_image(
        parent,
        child,
        size=size,
        block_size=block_size,
        force=force,
        identities=new_identities(disk_id, write_id),
        options=access.image_options,
    )
    print_warnings(report.findings)
    if as_json:
        print_json(create_json(report))
    else:
        print_text(create_text(report))
