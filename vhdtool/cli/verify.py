"""``vhdtool verify TARGET``."""

from __future__ import annotations

import re
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vhdtool.cli.options import FILE, Access, chain_options, gentle_options, json_option, progress_option
from vhdtool.cli.output import open_sound, paint, print_json, print_text, refuse_folder
from vhdtool.cli.progress import ProgressMode, progress_bar
from vhdtool.errors import printable

if TYPE_CHECKING:
    from vhdtool.export.gentle.throttle import Limits

    PercentBase = click.ParamType[float]
else:
    PercentBase = click.ParamType


class PercentType(PercentBase):
    """A share: ``5%``, ``0.5%``; the sign may be left out."""

    name = "percent"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Text to a number; what is a number already stays."""
        match = re.fullmatch(r"([0-9]{1,3}(?:\.[0-9]{1,9})?) ?%?", str(value).strip())
        if match is None or not 0 < float(match[1]) <= 100:
            self.fail(f"{printable(str(value))!r} is no share between 0 % and 100 %", param, ctx)
        return float(match[1])


@click.command("verify")
@click.argument("target", type=FILE)
@click.option("--manifest", type=FILE, help="The manifest; TARGET.manifest.json without it.")
@click.option("--key", type=FILE, help="A public key: the manifest must be signed by its owner.")
@click.option(
    "--sample", type=PercentType(), metavar="N%", help="Read only so much of the data, chosen at random."
)
@click.option("--seed", type=click.IntRange(min=0), help="With --sample: choose as an earlier run did.")
@click.option("--against", type=FILE, metavar="LEAF", help="Compare with LEAF's disk instead of a manifest.")
@click.option("--set", "is_set", is_flag=True, help="TARGET is a folder with a set of exports: verify all.")
@click.option("--raw", is_flag=True, help="With --against: TARGET is a raw disk, whatever is in it.")
@chain_options
@gentle_options
@progress_option
@json_option
@click.pass_context
def command(
    ctx: click.Context,
    target: Path,
    manifest: Path | None,
    key: Path | None,
    sample: float | None,
    seed: int | None,
    against: Path | None,
    is_set: bool,
    raw: bool,
    access: Access,
    limits: Limits,
    progress_mode: ProgressMode,
    as_json: bool,
) -> None:
    """Check an exported image against its manifest, or against its chain with --against.

    Of an increment only what it holds itself is read, and its parent is looked for.  The exit code is 1 when
    it is not what was exported.
    """
    if seed is not None and sample is None:
        raise click.UsageError("--seed goes with --sample")
    if is_set:
        for name, given in (("--manifest", manifest), ("--against", against), ("--raw", raw or None)):
            if given is not None:
                raise click.UsageError(f"{name} and --set exclude each other")
        if access != Access():
            raise click.UsageError("options that open chains and --set exclude each other: a set is complete")
        from vhdtool.cli.sets import run_verify_set

        ctx.exit(
            run_verify_set(
                target,
                sample=sample,
                seed=seed,
                key=key,
                limits=limits,
                progress_mode=progress_mode,
                as_json=as_json,
            )
        )
    refuse_folder(target, "--set verifies a set of exports")
    if against is not None:
        for name, value in (("--manifest", manifest), ("--key", key), ("--sample", sample)):
            if value is not None:
                raise click.UsageError(f"{name} and --against exclude each other")
        ctx.exit(_verify_against(target, against, raw, access, limits, progress_mode, as_json))
    if raw:
        raise click.UsageError("--raw goes with --against; the manifest says what TARGET is")
    from vhdtool.export.proof.manifest import SUFFIX
    from vhdtool.export.proof.verify import verify_image
    from vhdtool.report.ranges import verify_json, verify_text

    if manifest is None and target.name.endswith(SUFFIX):
        raise click.UsageError(f"{printable(str(target))} is a manifest: name the image that it belongs to")
    access.require_folders()
    with progress_bar("verify", progress_mode) as progress:
        report = verify_image(
            target,
            manifest,
            sample=sample,
            seed=seed,
            key=key,
            search=access.search,
            maps=access.path_maps(),
            allow_mismatch=access.allow_mismatch,
            limits=limits,
            progress=progress,
        )
    if as_json:
        print_json(verify_json(report))
    else:
        print_text(verify_text(report, paint()))
    ctx.exit(report.exit_code)


def _verify_against(
    target: Path,
    leaf: Path,
    raw: bool,
    access: Access,
    limits: Limits,
    progress_mode: ProgressMode,
    as_json: bool,
) -> int:
    """Compare TARGET with LEAF's disk; the exit code."""
    from vhdtool.export.proof.verify import verify_against
    from vhdtool.report.ranges import compare_json, compare_text

    with ExitStack() as stack:
        chain = stack.enter_context(open_sound(leaf, access))
        disk = target if raw else stack.enter_context(open_sound(target, access))
        progress = stack.enter_context(progress_bar("verify", progress_mode))
        comparison = verify_against(disk, chain, raw=raw, limits=limits, progress=progress)
    if as_json:
        print_json(compare_json(comparison))
    else:
        print_text(compare_text(comparison, paint()))
    return comparison.exit_code
