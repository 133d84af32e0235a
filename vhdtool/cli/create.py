"""``vhdtool create TARGET``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal
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
from vhdtool.cli.progress import progress_bar


@click.command("create")
@click.argument("target", type=FILE)
@click.option("--size", type=SIZE, help="Of the disk; that of --from or --parent without it.")
@click.option(
    "--format",
    "format_",
    type=click.Choice(["vhd", "vhdx"]),
    help="What TARGET's name claims without it.",
)
@click.option(
    "--type",
    "--subformat",
    "type_",
    type=click.Choice(["fixed", "dynamic", "differencing"]),
    help="Dynamic without it, differencing with --parent.",
)
@click.option("--from", "source", type=FILE, metavar="RAW", help="Fill the disk from a raw one.")
@click.option("--parent", type=FILE, help="Make a differencing child of this image.")
@click.option("--block-size", type=SIZE, help="What Windows takes without it.")
@click.option("--logical-sector-size", type=click.Choice(["512", "4096"]), help="Of a VHDX; 512 without it.")
@click.option(
    "--physical-sector-size", type=click.Choice(["512", "4096"]), help="Of a VHDX; 4096 without it."
)
@identity_options
@force_option
@json_option
@image_options
def command(
    target: Path,
    size: int | None,
    format_: Literal["vhd", "vhdx"] | None,
    type_: Literal["fixed", "dynamic", "differencing"] | None,
    source: Path | None,
    parent: Path | None,
    block_size: int | None,
    logical_sector_size: str | None,
    physical_sector_size: str | None,
    disk_id: UUID | None,
    write_id: UUID | None,
    force: bool,
    as_json: bool,
    access: Access,
) -> None:
    """Make a new image, empty or filled from a raw one."""
    if size is None and source is None and parent is None:
        raise click.UsageError("say how large: --size, or --from RAW or --parent PARENT")
    if source is not None and parent is not None:
        raise click.UsageError("--from and --parent exclude each other")
    if type_ is None:
        type_ = "dynamic" if parent is None else "differencing"
    if (type_ == "differencing") != (parent is not None):
        raise click.UsageError("--parent goes with --type differencing, and only with it")
    from vhdtool.export.create import create_image
    from vhdtool.report.create import create_json, create_text

    with progress_bar("create") as progress:
        report = create_image(
            target,
            format=format_,
            subformat=type_,
            size=size,
            block_size=block_size,
            logical_sector_size=None if logical_sector_size is None else int(logical_sector_size),
            physical_sector_size=None if physical_sector_size is None else int(physical_sector_size),
            source=source,
            parent=parent,
            force=force,
            identities=new_identities(disk_id, write_id),
            options=access.image_options,
            progress=progress,
        )
    print_warnings(report.findings)
    if as_json:
        print_json(create_json(report))
    else:
        print_text(create_text(report))
