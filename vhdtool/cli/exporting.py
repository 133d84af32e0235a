"""What commands share that write exports: how the target is to be, and what is said at the end."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from vhdtool.cli.faults import Stopped, say
from vhdtool.cli.options import (
    FILE,
    SIZE,
    Access,
    DigestsType,
    engine_option,
    force_option,
    gentle_options,
    progress_option,
)
from vhdtool.cli.output import print_file_names, print_warnings
from vhdtool.errors import SourceChangedError, SourceGoneError, TargetError, TargetExistsError

if TYPE_CHECKING:
    from vhdtool.chain.chain import Chain
    from vhdtool.export.moving.progress import ProgressCallback
    from vhdtool.export.options import ExportOptions, ExportReport

Command = TypeVar("Command", bound=Callable[..., Any])

_CASE: Final = ("case", "examiner", "evidence", "note")
_OPTIONS: Final = (
    click.option(
        "--format",
        type=click.Choice(["raw", "vhd", "vhdx", "raw.zst", "e01"]),
        help="Of the target; without it what its name claims, else raw (merge: as LEAF).",
    ),
    click.option(
        "--subformat",
        type=click.Choice(["fixed", "dynamic"]),
        help="Of a VHD or VHDX; dynamic without it.",
    ),
    click.option(
        "--block-size",
        type=SIZE,
        metavar="SIZE",
        help="Of a VHD or VHDX; without it as Windows (merge: as LEAF).",
    ),
    click.option(
        "--logical-sector-size",
        type=SIZE,
        metavar="SIZE",
        help="Of a VHDX, 512 or 4096; the leaf's without it.",
    ),
    click.option("--keep-id", is_flag=True, help="Keep the leaf's identities, by which children know it."),
    click.option(
        "--level",
        type=click.IntRange(1, 19),
        default=3,
        show_default=True,
        help="How hard raw.zst is compressed.",
    ),
    click.option(
        "--zero-detect/--no-zero-detect",
        default=True,
        show_default=True,
        help="Look for zeros in data, and give them no space.",
    ),
    click.option(
        "--damaged",
        type=click.Choice(["refuse", "zero"]),
        default="refuse",
        show_default=True,
        help="Refuse a disk with ranges that cannot be read, or put zeros there and list them.",
    ),
    click.option("--resume", is_flag=True, help="Go on with what an interrupted job left, and verify that."),
    click.option(
        "--hash",
        "hashes",
        type=DigestsType(),
        default="",
        metavar="LIST",
        help="Digests of the whole disk: md5, sha1, sha256, sha512, blake2b, blake3; with commas between.",
    ),
    click.option("--manifest", type=FILE, help="Where the manifest goes; TARGET.manifest.json without it."),
    click.option(
        "--no-manifest", is_flag=True, help="No manifest and no digests; such a job cannot be resumed."
    ),
    click.option("--case", metavar="TEXT", help="Case number, for the manifest."),
    click.option("--examiner", metavar="TEXT", help="Who examines, for the manifest."),
    click.option("--evidence", metavar="TEXT", help="Evidence number, for the manifest."),
    click.option("--note", metavar="TEXT", help="Whatever else belongs into the manifest."),
    click.option(
        "--sign",
        type=FILE,
        metavar="KEY",
        help="Sign the manifest with this private key: ed25519, PEM or OpenSSH.",
    ),
    click.option(
        "--settle",
        type=click.FloatRange(min=0, max=86_400),
        default=0,
        metavar="SECONDS",
        help="Wait until no layer has changed for so long.",
    ),
    click.option(
        "--sync/--no-sync",
        default=True,
        show_default=True,
        help="Wait until the disk has everything before it appears.",
    ),
)


def export_options(command: Command) -> Command:
    """How a target is written, as one argument ``options``, and ``progress_mode``."""

    @wraps(command)
    def wrapped(*args: Any, **values: Any) -> Any:
        return command(*args, options=_taken(values), **values)

    result: Any = wrapped
    for option in (progress_option, gentle_options, force_option, engine_option, *reversed(_OPTIONS)):
        result = option(result)
    return result  # type: ignore[no-any-return]


def _taken(values: dict[str, Any]) -> ExportOptions:
    """The options among ``values``, which lose them."""
    from vhdtool.export.options import ExportOptions

    case = {name: text for name in _CASE if (text := values.pop(name))}
    no_manifest = values.pop("no_manifest")
    if no_manifest:
        if values["manifest"] is not None:
            raise click.UsageError("--manifest and --no-manifest exclude each other")
        for name in ("sign", "resume"):
            if values.get(name):
                raise click.UsageError(f"--{name} needs a manifest")
        if case:
            raise click.UsageError(f"--{next(iter(case))} goes into the manifest")
    names = ExportOptions.__slots__
    mine = {name: values.pop(name) for name in list(values) if name in names}
    if no_manifest:
        mine["manifest"] = False
    return ExportOptions(case=case, **mine)


@contextmanager
def open_to_export(
    leaf: Path, access: Access, options: ExportOptions, progress: ProgressCallback | None
) -> Iterator[Chain]:
    """LEAF's chain, once it is quiet; an error finding of any layer refuses, warnings are printed.

    Raises:
        VhdtoolError: what refuses.
    """
    from vhdtool.export.job import settled

    allow_damaged = options.damaged == "zero"

    def opened() -> Chain:
        return access.open_chain(leaf, strict=True)

    with settled(opened, options.settle, progress=progress) as chain:
        chain.require_sound(allow_damaged=allow_damaged)
        print_warnings(chain.warnings())
        yield chain


@contextmanager
def saying_how_to_resume(target: str) -> Iterator[None]:
    """What stops a job that can be gone on with is told together with how."""
    try:
        yield
    except (KeyboardInterrupt, Stopped) as stop:
        if _can_resume(target):
            raise Stopped("what was done is kept: the same command with --resume goes on") from stop
        raise
    except Exception as error:
        # The journal that is there can be another job's, or of files that are not what they were.
        is_lost = isinstance(error, (TargetError, SourceChangedError))
        is_kept = isinstance(error, (TargetExistsError, SourceGoneError)) and not Path(target).is_dir()
        if (is_kept or not is_lost) and _can_resume(target):
            say("what was done is kept: once the cause is gone, the same command with --resume goes on")
        raise


def _can_resume(target: str) -> bool:
    from vhdtool.export.containers.target import journal_path
    from vhdtool.export.proof.manifest import SUFFIX

    if target == "-":
        return False
    path = Path(os.path.realpath(target))
    if path.is_dir():  # of a set, images that are whole are kept
        return any(path.glob(f"*{SUFFIX}")) or any(path.glob(journal_path(path / "*").name))
    return journal_path(path).is_file()


def say_what_was_done(report: ExportReport, target: str) -> None:
    """Warnings and digests, and for who waited a summary."""
    from vhdtool.report.export import damaged_lines, digest_lines, summary

    for line in damaged_lines(report):
        say(f"warning: {line}")
    for note in report.notes:
        say(f"warning: {note}")
    for line in digest_lines(report.digests, target):
        (say if target == "-" else print_file_names)(line)
    if sys.stderr is not None and sys.stderr.isatty():
        say(summary(report))
