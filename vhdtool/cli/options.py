"""What commands share: how a leaf and its parents are to be opened, sizes, ``--json``."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

import click

from vhdtool.cli.faults import say
from vhdtool.errors import FileMissingError, printable
from vhdtool.formats.image import OpenOptions

if TYPE_CHECKING:
    from uuid import UUID

    from vhdtool.chain.chain import Chain
    from vhdtool.chain.paths import PathMap
    from vhdtool.export.create import Identities
    from vhdtool.export.gentle.throttle import Limits

Command = TypeVar("Command", bound=Callable[..., Any])

# click checks nothing: a missing file is exit code 66, an unreadable one 74, and only who opens it knows.
FILE: Final = click.Path(path_type=Path, readable=False)

_UNITS: Final = {
    "": 1,
    "B": 1,
    "S": 512,
    "KIB": 1 << 10,
    "MIB": 1 << 20,
    "GIB": 1 << 30,
    "TIB": 1 << 40,
}
_SIZE: Final = re.compile(r"(0x[0-9a-f]+|[0-9]+) ?([a-z]*)", re.IGNORECASE)
_SIZE_MAX: Final = 1 << 63


if TYPE_CHECKING:  # a generic class in newer versions of click only
    IntType = click.ParamType[int]
    NamesType = click.ParamType[tuple[str, ...]]
else:
    IntType = NamesType = click.ParamType


class SizeType(IntType):
    """Bytes: ``65536``, ``0x10000``, ``64KiB``, ``4MiB``, ``1GiB``, ``128s`` (sectors of 512 bytes)."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Text to bytes; what is a number already stays."""
        if isinstance(value, int):
            return value
        match = _SIZE.fullmatch(str(value).strip())
        unit = None if match is None else _UNITS.get(match[2].upper())
        if match is None or unit is None:
            self.fail(
                f"{printable(str(value))!r} is no size: plain bytes or 64KiB, 4MiB, 1GiB, 1TiB, 128s",
                param,
                ctx,
            )
        # A number with thousands of digits is refused before it is converted.
        size = (
            int(match[1], 0 if match[1][:2].lower() == "0x" else 10) * unit
            if len(match[1]) < 32
            else _SIZE_MAX
        )
        if size >= _SIZE_MAX:
            self.fail(f"{printable(str(value))!r} is more than any file can have", param, ctx)
        return size


class DigestsType(NamesType):
    """Names of digests with commas between: ``sha256,md5``."""

    name = "digests"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        """Text to names, each one known."""
        if isinstance(value, tuple):
            return value
        from vhdtool.export.proof.digest import WHOLE_ALGORITHMS

        names = tuple(dict.fromkeys(name.strip().lower() for name in str(value).split(",") if name.strip()))
        for name in names:
            if name not in WHOLE_ALGORITHMS:
                self.fail(f"{printable(name)!r} is none of {', '.join(WHOLE_ALGORITHMS)}", param, ctx)
        return names


SIZE: Final = SizeType()


@dataclass(frozen=True, slots=True)
class Access:
    """How the user wants images, and the parents of images, to be opened."""

    log: Literal["before", "after"] = "after"
    ignore_checksums: bool = False
    search: tuple[Path, ...] = ()
    maps: tuple[str, ...] = ()
    allow_mismatch: bool = False

    @property
    def image_options(self) -> OpenOptions:
        """The part that one image asks for."""
        return OpenOptions(log=self.log, ignore_checksums=self.ignore_checksums)

    def open_chain(self, leaf: Path, *, strict: bool) -> Chain:
        """LEAF with its parents.

        Raises:
            FileMissingError: a folder that the user named is not there.
            UsageError: a map is none.
            VhdtoolError: as ``vhdtool.chain.discover.open_chain``.
        """
        from vhdtool.chain.discover import open_chain

        self.require_folders()
        return open_chain(
            leaf,
            search=self.search,
            maps=self.path_maps(),
            log=self.log,
            ignore_checksums=self.ignore_checksums,
            allow_mismatch=self.allow_mismatch,
            strict=strict,
        )

    def path_maps(self) -> list[PathMap]:
        """The maps, checked.

        Raises:
            FileMissingError: a map's folder is not there.
            UsageError: a map is none.
        """
        from vhdtool.chain.paths import PathMap

        maps = []
        for text in self.maps:
            try:
                maps.append(PathMap.parse(text))
            except ValueError as error:
                _, separator, here = text.partition("=")
                if separator and here:
                    require_folder(Path(here))
                raise click.UsageError(f"--map: {printable(str(error))}") from error
        return maps

    def require_folders(self) -> None:
        """Refuse --search folders that are not there: a slip must not look like a missing parent."""
        for folder in self.search:
            require_folder(folder)


def require_folder(folder: Path) -> None:
    """Refuse a folder that is not there.

    Raises:
        FileMissingError: that.
    """
    try:
        there = folder.is_dir()
    except (OSError, ValueError):  # a name too long, or with a NUL in it
        there = False
    if not there:
        raise FileMissingError(f"no such folder: {printable(str(folder))}")


_MAP_OPTION: Final = click.option(
    "--map",
    "maps",
    multiple=True,
    metavar="'D:\\VMs=DIR'",
    help="Where a Windows folder lies here. Repeatable.",
)
_IMAGE_OPTIONS: Final = (
    click.option(
        "--log",
        type=click.Choice(["before", "after"]),
        default="after",
        show_default=True,
        help="Leave a pending VHDX log out, or replay it in memory.",
    ),
    click.option(
        "--ignore-checksums",
        is_flag=True,
        help="Accept a structure whose checksum is wrong and whose fields are plausible.",
    ),
)
_CHAIN_OPTIONS: Final = (
    click.option(
        "--search",
        multiple=True,
        type=FILE,
        metavar="DIR",
        help="Also look for parents here, not below. Repeatable.",
    ),
    _MAP_OPTION,
    click.option("--allow-mismatch", is_flag=True, help="Go on although a parent's identity does not agree."),
    *_IMAGE_OPTIONS,
)


def identity_options(command: Command) -> Command:
    """Identities to give to a new image: to put back a lost parent that a child asks for."""
    for option in (
        click.option("--write-id", type=click.UUID, help="DataWriteGuid of a VHDX, instead of a new one."),
        click.option(
            "--disk-id", type=click.UUID, help="VirtualDiskId or VHD UniqueId, instead of a new one."
        ),
    ):
        command = option(command)
    return command


def new_identities(disk_id: UUID | None, write_id: UUID | None) -> Identities:
    """What ``identity_options`` were given, as the library takes it."""
    from vhdtool.export.create import Identities
    from vhdtool.model.identity import Identity

    return Identities(
        None if disk_id is None else Identity.of_uuid(disk_id),
        None if write_id is None else Identity.of_uuid(write_id),
    )


def gentle_options(command: Command) -> Command:
    """How gentle a job is to whoever else uses the storage, as one argument ``limits``."""

    @wraps(command)
    def wrapped(*args: Any, **values: Any) -> Any:
        mine = {
            name: values.pop(name)
            for name in ("limit_rate", "limit_iops", "max_latency", "idle", "drop_cache")
        }
        return command(*args, limits=_limits(**mine), **values)

    result: Any = wrapped
    for option in reversed(_GENTLE_OPTIONS):
        result = option(result)
    return result  # type: ignore[no-any-return]


def _limits(
    limit_rate: int | None,
    limit_iops: int | None,
    max_latency: float | None,
    idle: bool,
    drop_cache: bool | None,
) -> Limits:
    """As ``Limits``; who is gentle in any way does not want to push others out of the page cache either."""
    from vhdtool.export.gentle.throttle import Limits

    if limit_rate == 0:
        raise click.BadParameter("at 0 bytes a second nothing is ever read", param_hint="--limit-rate")
    if max_latency is not None and math.isnan(max_latency):  # click finds it in every range
        raise click.BadParameter("that is no number of milliseconds", param_hint="--max-latency")
    if idle:
        from vhdtool.export.gentle.priority import LowPriority

        for note in LowPriority().notes:
            say(f"warning: --idle: {note}")
    is_gentle = idle or not (limit_rate is limit_iops is max_latency is None)
    return Limits(
        rate=limit_rate,
        iops=limit_iops,
        max_latency=None if max_latency is None else max_latency / 1000,
        idle=idle,
        drop_cache=is_gentle if drop_cache is None else drop_cache,
    )


_GENTLE_OPTIONS: Final = (
    click.option("--limit-rate", type=SIZE, metavar="SIZE", help="Read at most so many bytes a second."),
    click.option(
        "--limit-iops", type=click.IntRange(min=1), metavar="N", help="Read at most so many times a second."
    ),
    click.option(
        "--max-latency",
        type=click.FloatRange(min=0, min_open=True, max=86_400_000),
        metavar="MS",
        help="Slow down while 5 % of the reads take longer than so many milliseconds.",
    ),
    click.option("--idle", is_flag=True, help="Lowest priority for CPU and, where the system has it, I/O."),
    click.option(
        "--drop-cache/--keep-cache",
        "drop_cache",
        default=None,
        help="Drop what was read from the page cache, but not what was there before; the default with any "
        "of the options above.",
    ),
)

progress_option: Final = click.option(
    "--progress",
    "progress_mode",
    type=click.Choice(["auto", "json", "none"]),
    default="auto",
    show_default=True,
    help="A bar when stderr is a terminal, lines of JSON on stderr, or nothing.",
)


def image_options(command: Command) -> Command:
    """The options of commands that read single images, as one argument ``access``."""
    return _with_access(command, _IMAGE_OPTIONS)


def chain_options(command: Command) -> Command:
    """The options of commands that read through parents, as one argument ``access``."""
    return _with_access(command, _CHAIN_OPTIONS)


def tree_options(command: Command) -> Command:
    """The options of commands that link the images of folders, as one argument ``access``."""
    return _with_access(command, (_MAP_OPTION, *_IMAGE_OPTIONS))


def _with_access(command: Command, options: tuple[Callable[[Any], Any], ...]) -> Command:
    @wraps(command)
    def wrapped(*args: Any, **values: Any) -> Any:
        mine = {name: values.pop(name) for name in Access.__slots__ if name in values}
        return command(*args, access=Access(**mine), **values)

    result: Any = wrapped
    for option in reversed(options):
        result = option(result)
    return result  # type: ignore[no-any-return]


json_option: Final = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
force_option: Final = click.option(
    "--force", is_flag=True, help="Replace what stands under the target's name."
)
engine_option: Final = click.option(
    "--engine",
    type=click.Choice(["auto", "numpy", "numba"]),
    default="auto",
    show_default=True,
    help="What resolves and looks up; auto takes the one that costs less for this job.",
)
