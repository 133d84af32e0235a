"""What ``export --all`` and ``verify --set`` do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vhdtool.cli.exporting import saying_how_to_resume
from vhdtool.cli.faults import say
from vhdtool.cli.options import Access
from vhdtool.cli.output import paint, print_json, print_text, print_warnings
from vhdtool.cli.progress import ProgressMode, progress_bar

if TYPE_CHECKING:
    from vhdtool.export.gentle.throttle import Limits
    from vhdtool.export.options import ExportOptions
    from vhdtool.export.sets.allpoints import Layout


def run_all(
    folders: Sequence[Path],
    destination: Path,
    options: ExportOptions,
    *,
    layout: Layout,
    access: Access,
    progress_mode: ProgressMode = "auto",
    as_json: bool = False,
) -> int:
    """Export every point in time below ``folders``; the exit code.

    Raises:
        UsageError: options that are for one image, or for one chain.
        VhdtoolError: as ``vhdtool.export.sets.allpoints.export_all``.
    """
    from vhdtool.export.sets.allpoints import export_all
    from vhdtool.report.sets import damaged_points, set_json, set_text, skipped_lines

    if access.search or access.allow_mismatch:
        raise click.UsageError(
            "--search and --allow-mismatch do not go with --all: name the folders themselves"
        )
    try:
        with saying_how_to_resume(str(destination)), progress_bar("export", progress_mode) as progress:
            report = export_all(
                folders,
                destination,
                options,
                layout=layout,
                maps=access.path_maps(),
                log=access.log,
                ignore_checksums=access.ignore_checksums,
                progress=progress,
            )
    except ValueError as error:
        # The library calls options by the names that they have there.
        raise click.UsageError(str(error).replace("_", "-")) from error
    reasons = {skipped.reason for skipped in report.skipped}
    print_warnings(finding for finding in report.findings if str(finding) not in reasons)
    for line in (*skipped_lines(report), *damaged_points(report), *report.notes):
        say(f"warning: {line}")
    if as_json:
        print_json(set_json(report))
    else:
        print_text(set_text(report, paint()))
    return report.exit_code


def run_verify_set(
    folder: Path,
    *,
    sample: float | None,
    seed: int | None,
    key: Path | None,
    limits: Limits,
    progress_mode: ProgressMode = "auto",
    as_json: bool = False,
) -> int:
    """Verify the set in ``folder``; the exit code.

    Raises:
        VhdtoolError: as ``vhdtool.export.sets.verifyset.verify_set``.
    """
    from vhdtool.export.sets.verifyset import verify_set
    from vhdtool.report.sets import verify_set_json, verify_set_text

    with progress_bar("verify", progress_mode) as progress:
        report = verify_set(folder, sample=sample, seed=seed, key=key, limits=limits, progress=progress)
    if as_json:
        print_json(verify_set_json(report))
    else:
        print_text(verify_set_text(report, paint()))
    return report.exit_code
