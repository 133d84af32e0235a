"""``--picture FILE``: the option, what made the picture, and where it is written."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from vhdtool.errors import printable

if TYPE_CHECKING:
    from vhdtool.report.pictures import Made, Suffix

    PathType = click.ParamType[Path]
else:
    PathType = click.ParamType

STDOUT: Final = Path("-")


class PictureType(PathType):
    """A file whose name says what kind of picture it is to be: it ends in one of ``suffixes``."""

    name = "file"

    def __init__(self, *suffixes: str) -> None:
        self._suffixes = suffixes

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Text to a path with one of the suffixes."""
        path = Path(value)
        if path.suffix.lower() not in self._suffixes:
            expected = " or ".join(self._suffixes)
            self.fail(f"{printable(str(value))!r} does not end in {expected}", param, ctx)
        return path


class PageType(PictureType):
    """A page's file, or ``-`` for stdout."""

    def __init__(self) -> None:
        super().__init__(".html", ".htm")

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Text to a path; ``STDOUT`` for stdout."""
        return STDOUT if str(value) == "-" else super().convert(value, param, ctx)


def picture_option(shows: str) -> Callable[[Any], Any]:
    """The option ``--picture FILE``, given to the command as ``picture``; ``shows`` says of what."""
    return click.option(
        "--picture",
        type=PictureType(".html", ".svg"),
        metavar="FILE.html|.svg",
        help=f"Write {shows} as a page or a drawing.",
    )


def suffix_of(path: Path) -> Suffix:
    """Which of the two a picture's name asks for."""
    return ".svg" if path.suffix.lower() == ".svg" else ".html"


def made_now(ctx: click.Context) -> Made:
    """What the running command is, for the foot of its pictures."""
    from vhdtool.report.pictures import Made

    words = ctx.find_root().obj or ()
    return Made(shlex.join(["vhdtool", *map(str, words)]), datetime.now(UTC))


@contextmanager
def begun_picture(path: Path, *, force: bool, inputs: Iterable[Path] = ()) -> Iterator[Callable[[str], None]]:
    """A picture to be written at the end: call what this gives with its text.

    Raises:
        MissingPackageError: what pages are made with is not installed.
        TargetExistsError, TargetError, ExportError: as for ``begun_file``.
    """
    from vhdtool.report.templates import require_templates

    require_templates()
    with begun_file(path, force=force, inputs=inputs) as write:
        yield write


@contextmanager
def begun_file(path: Path, *, force: bool, inputs: Iterable[Path] = ()) -> Iterator[Callable[[str], None]]:
    """A file of text to be written at the end: call what this gives with the text.

    Begun before the work, under a temporary name: that a file cannot be made is not to be found out after a
    minute's work.  Without that call nothing is left.

    Args:
        force: replace what stands there.
        inputs: files that must not be the target; nobody may read the text who may not read them.

    Raises:
        TargetExistsError: something stands under the name.
        TargetError, ExportError: the file cannot be made.
    """
    from vhdtool.export.containers.target import TargetFile, mode_like

    inputs = tuple(inputs)
    with TargetFile(path, force=force, inputs=inputs, mode=mode_like(inputs)) as target:

        def write(text: str) -> None:
            data = text.encode("utf-8", "backslashreplace")
            target.write_at(0, data)
            target.finish(len(data))
            target.publish()

        yield write
