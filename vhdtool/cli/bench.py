"""``vhdtool bench depth``."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final, Literal

import click

from vhdtool.cli.options import FILE, SIZE, engine_option, force_option, json_option
from vhdtool.cli.output import paint, print_json, print_text
from vhdtool.cli.picture import begun_file, made_now, picture_option, suffix_of
from vhdtool.cli.progress import status_line
from vhdtool.errors import TargetError, TargetExistsError, printable

if TYPE_CHECKING:
    from vhdtool.chain.engine import Engine
    from vhdtool.simulate.depth import DepthJob

    DepthsParam = click.ParamType[tuple[int, ...]]
else:
    DepthsParam = click.ParamType

_LIBVHDI_VARIABLE: Final = "VHDTOOL_ORACLE_PYTHON"
_DEPTH_MAX: Final = 255


class DepthsType(DepthsParam):
    """Numbers of differencing layers with commas between: ``0,1,4,16``."""

    name = "depths"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """Text to numbers, ascending, each once."""
        if isinstance(value, tuple):
            return value
        parts = str(value).split(",")
        if not all(part.strip().isascii() and part.strip().isdigit() for part in parts):
            self.fail(f"{printable(str(value))!r} is no list of depths like 0,1,4,16", param, ctx)
        # A number with thousands of digits is refused before it is converted.
        depths = {int(part) if len(part.strip()) < 8 else _DEPTH_MAX + 1 for part in parts}
        if max(depths) > _DEPTH_MAX:
            self.fail(
                f"a chain has {_DEPTH_MAX} differencing layers at most: {printable(str(value))}", param, ctx
            )
        return tuple(sorted(depths))


@click.group("bench")
def command() -> None:
    """Measure what reading through snapshots costs on this machine."""


@command.command("depth", short_help="Measure lookups and reads at several depths of a chain.")
@click.option(
    "--depths",
    type=DepthsType(),
    default="0,1,4,16,64",
    show_default=True,
    help="Differencing layers above the base; with commas between.",
)
@click.option("--size", type=SIZE, default="1GiB", show_default=True, help="Of the virtual disk.")
@click.option("--fill", type=float, default=0.5, show_default=True, help="Share of it that the base holds.")
@click.option(
    "--share", type=float, default=0.02, show_default=True, help="Share of that which each layer writes anew."
)
@click.option(
    "--grain",
    type=SIZE,
    default="4KiB",
    show_default=True,
    help="Writes are 1 to 16 of these long; a power of two from 512 to 64KiB.",
)
@click.option(
    "--format",
    "format_",
    type=click.Choice(["vhd", "vhdx", "both"]),
    default="both",
    show_default=True,
    help="Of the chains.",
)
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Another one makes other chains."
)
@click.option(
    "--rounds", type=click.IntRange(1, 1000), default=5, show_default=True, help="Medians are over these."
)
@click.option(
    "--reads",
    type=click.IntRange(1, 1 << 20),
    default=10_000,
    show_default=True,
    help="Of 4 KiB, by each reader in each round.",
)
@engine_option
@click.option(
    "--libvhdi",
    metavar="PYTHON",
    help=f"An interpreter that can import pyvhdi; ${_LIBVHDI_VARIABLE} or this one without it.",
)
@click.option(
    "--folder",
    type=FILE,
    metavar="DIR",
    help="Make the chains there, and keep them; else in a temporary folder, which is removed.",
)
@picture_option("the cost against the depth")
@click.option("-o", "--output", type=FILE, metavar="FILE.json", help="Also write the JSON document there.")
@force_option
@json_option
@click.pass_context
def depth(
    ctx: click.Context,
    depths: tuple[int, ...],
    size: int,
    fill: float,
    share: float,
    grain: int,
    format_: Literal["vhd", "vhdx", "both"],
    seed: int,
    rounds: int,
    reads: int,
    engine: Engine,
    libvhdi: str | None,
    folder: Path | None,
    picture: Path | None,
    output: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Measure lookups and reads at several depths of a chain, in one interleaved run.

    Chains are made for it: a base full of noise, and layers that each write a share of it anew, at random
    places.  Beside each other stand the resolved map, a naive walk, a flat file, and libvhdi where it is
    installed.  Everything that is read is compared with what was written.
    """
    from vhdtool.model.identity import ImageFormat
    from vhdtool.simulate.depth import DepthJob
    from vhdtool.simulate.synthetic import Recipe

    if picture is not None and output is not None and os.path.realpath(picture) == os.path.realpath(output):
        raise click.UsageError("--picture and --output are one file")
    formats = ("vhd", "vhdx") if format_ == "both" else (format_,)
    try:
        job = DepthJob(
            Recipe(size, depths[-1] + 1, fill=fill, rewrite=share, grain=grain, seed=seed),
            depths=depths,
            formats=tuple(map(ImageFormat, formats)),
            rounds=rounds,
            reads=reads,
            engine=engine,
        )
    except ValueError as error:
        raise click.UsageError(printable(str(error))) from error
    python, note = find_libvhdi(libvhdi)
    _measure(ctx, replace(job, libvhdi=python), note, folder, picture, output, force, as_json)


def _measure(
    ctx: click.Context,
    job: DepthJob,
    note: str,
    folder: Path | None,
    picture: Path | None,
    output: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Run ``job``, print what came of it and write the files that were asked for."""
    import json

    from vhdtool.export.containers.target import TargetFile
    from vhdtool.report.depth import depth_json, depth_text
    from vhdtool.report.pictures import render_depth_page
    from vhdtool.report.templates import require_templates
    from vhdtool.simulate.depth import measure_depths

    if picture is not None:
        require_templates()
    with ExitStack() as stack:
        files = {
            path: stack.enter_context(begun_file(path, force=force)) for path in (output, picture) if path
        }
        # Left last: removing files can take long, and what was measured should be seen before.
        room = stack.enter_context(work_folder(folder))
        with status_line() as tell:
            found = measure_depths(job, room, partial(TargetFile, sync=False), tell=tell)
        found = replace(found, notes=(*found.notes, *([note] if note else [])))
        document = depth_json(found)
        # Whichever of these fails, what was measured is in the others.
        try:
            if output is not None:
                files[output](json.dumps(document, indent=2) + "\n")
            if picture is not None:
                files[picture](render_depth_page(found, made_now(ctx), suffix=suffix_of(picture)))
        finally:
            if as_json:
                print_json(document)
            else:
                print_text(depth_text(found, paint()))


def find_libvhdi(given: str | None) -> tuple[str | None, str]:
    """An interpreter with libvhdi, and a sentence on why there is none.

    Raises:
        MissingPackageError: the one that the user named has none.
    """
    from vhdtool.simulate.libvhdi import Libvhdi, LibvhdiError

    python = given or os.environ.get(_LIBVHDI_VARIABLE) or sys.executable
    try:
        with Libvhdi(python):
            return python, ""
    except LibvhdiError as error:
        if given:
            raise
        why = printable(str(error))
    return None, f"libvhdi is left out; --libvhdi PYTHON names an interpreter that has it ({why})"


@contextmanager
def work_folder(given: Path | None) -> Iterator[Path]:
    """An empty folder: ``given``, kept unless something goes wrong, or a temporary one.

    Raises:
        TargetError: ``given`` cannot be made, or is not empty.
    """
    if given is None:
        with TemporaryDirectory(prefix="vhdtool-bench-") as name:
            yield Path(name)
        return
    is_new = _empty_folder(given)
    try:
        yield given
    except BaseException:
        # It was empty, so all that is in it was made here.
        with suppress(OSError):
            for path in list(given.iterdir()):
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)
            if is_new:
                given.rmdir()
        raise


def _empty_folder(path: Path) -> bool:
    """Make ``path`` unless it is there and empty; whether it was made."""
    try:
        path.mkdir()
    except FileExistsError:
        pass
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no folder can have this name"
        raise TargetError(f"cannot create {printable(str(path))}: {reason}") from error
    else:
        return True
    try:
        if any(path.iterdir()):
            raise TargetExistsError(
                f"{printable(str(path))} is not empty: chains are made in an empty folder"
            )
    except OSError as error:
        raise TargetError(f"cannot create files in {printable(str(path))}: {error.strerror}") from error
    return False
