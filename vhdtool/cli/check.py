"""``vhdtool check PATH...``."""

from __future__ import annotations

from pathlib import Path

import click

from vhdtool.cli.faults import say
from vhdtool.cli.options import FILE, Access, chain_options, json_option
from vhdtool.cli.output import paint, print_json, print_text
from vhdtool.errors import EXIT_FOUND


@click.command("check")
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=FILE)
@click.option("--chain", "follow", is_flag=True, help="Check each image's parents too, and the links.")
@click.option("--deep", is_flag=True, help="Also read stored data where its presence can be a fault.")
@chain_options
@json_option
@click.pass_context
def command(
    ctx: click.Context, paths: tuple[Path, ...], follow: bool, deep: bool, access: Access, as_json: bool
) -> None:
    """List all findings of images, chains or whole folders.

    An image is checked by itself, with --chain together with its parents; a folder with all images below it
    and the links between them.  The exit code is 1 when there is an error among the findings.
    """
    from vhdtool.chain.check import CheckOptions, check_paths
    from vhdtool.report.check import check_json, check_text

    access.require_folders()
    options = CheckOptions(
        chain=follow,
        deep=deep,
        search=access.search,
        maps=tuple(access.path_maps()),
        log=access.log,
        ignore_checksums=access.ignore_checksums,
        allow_mismatch=access.allow_mismatch,
    )
    report = check_paths(paths, options)
    if as_json:
        print_json(check_json(report))
    elif report.images or report.findings or not report.refused:
        print_text(check_text(report, paint()))
    for error in report.refused:
        say(f"error: {error}")
    if report.refused:
        ctx.exit(report.refused[0].exit_code)
    if report.errors:
        ctx.exit(EXIT_FOUND)
