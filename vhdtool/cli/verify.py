"""``vhdtool verify TARGET``."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import click

from vhdtool.cli.options import FILE, Access, chain_options, json_option
from vhdtool.cli.output import open_sound, paint, print_json, print_text
from vhdtool.cli.progress import progress_bar


@click.command("verify")
@click.argument("target", type=FILE)
@click.option("--manifest", type=FILE, help="The manifest; TARGET.manifest.json without it.")
@click.option("--against", type=FILE, metavar="LEAF", help="Compare with LEAF's disk instead of a manifest.")
@click.option("--raw", is_flag=True, help="With --against: TARGET is a raw disk, whatever is in it.")
@chain_options
@json_option
@click.pass_context
def command(
    ctx: click.Context,
    target: Path,
    manifest: Path | None,
    against: Path | None,
    raw: bool,
    access: Access,
    as_json: bool,
) -> None:
    """Check an exported image against its manifest, or against its chain with --against.

    The exit code is 1 when it is not what was exported.
    """
    from vhdtool.export.verify import verify_against, verify_image
    from vhdtool.report.ranges import compare_json, compare_text, verify_json, verify_text

    if against is None:
        if raw:
            raise click.UsageError("--raw goes with --against; the manifest says what TARGET is")
        with progress_bar("verify") as progress:
            report = verify_image(target, manifest, progress=progress)
        if as_json:
            print_json(verify_json(report))
        else:
            print_text(verify_text(report, paint()))
        ctx.exit(report.exit_code)
    if manifest is not None:
        raise click.UsageError("--manifest and --against exclude each other")
    with ExitStack() as stack:
        chain = stack.enter_context(open_sound(against, access))
        disk = target if raw else stack.enter_context(open_sound(target, access))
        progress = stack.enter_context(progress_bar("verify"))
        comparison = verify_against(disk, chain, raw=raw, progress=progress)
    if as_json:
        print_json(compare_json(comparison))
    else:
        print_text(compare_text(comparison, paint()))
    ctx.exit(comparison.exit_code)
