"""What the depth of a chain costs: measured on synthetic chains, all depths in one interleaved run.

::

    one recipe ──► one chain a format, as deep as asked ──► a point in time at each depth ──┐
          └──────► its flat disk, as it is at the end ──► bare positioned reads ────────────┼──► rounds
    the same files, opened by libvhdi in a program of its own ──────────────────────────────┘

The page cache is warm: on a cold one the disk decides.  Reads go to where the base holds data: holes cost
nobody anything and would flatter everybody.  How it is measured is in ``contest``.
"""

from __future__ import annotations

import os
import platform
import shutil
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final
from zlib import crc32

import numpy as np
import numpy.typing as npt

from vhdtool.chain.engine import machine_for
from vhdtool.errors import ExportError, TargetError, TargetExistsError, printable
from vhdtool.model.identity import ImageFormat
from vhdtool.simulate.contest import READ_SIZE, Contest, Sample, Tell, Truth
from vhdtool.simulate.figures import DepthBenchmark
from vhdtool.simulate.synthetic import (
    Create,
    Layout,
    Output,
    Recipe,
    make_chain,
    require_possible,
    space_needed,
)
from vhdtool.source import FileSource

if TYPE_CHECKING:
    from vhdtool.chain.engine import Engine

READS_MAX: Final = 1 << 20
ROUNDS_MAX: Final = 1000

_PROBE_SIZE: Final = 1 << 20
# More lookups than any start-up of an engine could weigh against.
_MANY: Final = 1 << 40


@dataclass(frozen=True, slots=True)
class DepthJob:
    """What to measure.  Picklable.

    Attributes:
        recipe: with as many layers as the greatest depth needs: one more than it.
        depths: differencing layers above the base, ascending.
        formats: in the order in which they are shown.
        rounds: how often everything is measured.
        reads: of 4 KiB, of each reader in each round.
        engine: "auto" is numba where it is installed: here lookups are many.
        libvhdi: an interpreter that can import pyvhdi; None leaves that comparison out.

    Raises:
        ValueError: that cannot be measured.
    """

    recipe: Recipe
    depths: tuple[int, ...] = (0, 1, 4, 16, 64)
    formats: tuple[ImageFormat, ...] = (ImageFormat.VHD, ImageFormat.VHDX)
    rounds: int = 5
    reads: int = 10_000
    engine: Engine = "auto"
    libvhdi: str | None = None

    def __post_init__(self) -> None:
        if not self.depths or list(self.depths) != sorted(set(self.depths)) or self.depths[0] < 0:
            raise ValueError("depths ascend from 0, and there is one at least")
        if self.recipe.layers != self.depths[-1] + 1:
            raise ValueError(f"depth {self.depths[-1]} needs {self.depths[-1] + 1} layers")
        if not self.formats or len(set(self.formats)) < len(self.formats):
            raise ValueError("formats are different ones, and there is one at least")
        if not set(self.formats) <= {ImageFormat.VHD, ImageFormat.VHDX}:
            raise ValueError("chains are VHD or VHDX")
        for image_format in self.formats:
            require_possible(self.recipe, Layout(image_format))
        if not 1 <= self.rounds <= ROUNDS_MAX or not 1 <= self.reads <= READS_MAX:
            raise ValueError(f"1 to {ROUNDS_MAX} rounds of 1 to {READS_MAX} reads")


def measure_depths(
    job: DepthJob, folder: Path, create: Create, *, tell: Tell = lambda what: None
) -> DepthBenchmark:
    """Make the chains in ``folder``, measure them, and leave them there.

    Args:
        folder: is there, and has nothing that is called like what is made: ``flat.raw``, ``vhd``, ``vhdx``.
        create: begins a file, see :class:`vhdtool.simulate.synthetic.Create`.

    Raises:
        ValueError: a format cannot hold such a disk.
        ExportError: no room (the message says how much it takes), or writing failed.
        TargetError: something in the way.
        MissingPackageError: numba is asked for by name and not installed.
    """
    started = datetime.now(UTC)
    machine = machine_for(job.engine, lookups=_MANY)
    require_room(job, folder, create)
    sample = Sample.of(job.recipe, job.reads)
    made = _make(job, folder, create, sample, tell)
    with ExitStack() as stack:
        flat = stack.enter_context(FileSource(made.flat))
        contest = Contest(machine, sample, flat, made.truth, stack, tell)
        for image_format, paths in made.layers.items():
            contest.enter_chain(image_format, paths, job.libvhdi)
        contest.run(job.rounds)
        tell("counting")
        rows = tuple(point.row() for point in contest.points)
    return DepthBenchmark(
        settings=_settings(job, machine.name, contest.libvhdi),
        machine=describe_machine(),
        started=started.isoformat(timespec="seconds").replace("+00:00", "Z"),
        rows=rows,
        notes=tuple(contest.notes),
    )


# ------------------------------------------------------------ room, and what is made in it


def room_needed(job: DepthJob, *, holes: bool) -> int:
    """At most so many bytes are written; ``holes``: whether what is left out takes no room."""
    spaces = [space_needed(job.recipe, Layout(image_format)) for image_format in job.formats]
    if holes:
        return job.recipe.allocated + sum(space.sparse for space in spaces)
    return job.recipe.virtual_size + sum(space.full for space in spaces)


def require_room(job: DepthJob, folder: Path, create: Create) -> None:
    """Refuse to begin what would fill the disk.

    Raises:
        ExportError: too little room; says how much is needed and how much there is.
        TargetError: the folder cannot be written to.
    """
    needed = room_needed(job, holes=_keeps_holes(folder, create))
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise TargetError(f"cannot create files in {printable(str(folder))}: {error.strerror}") from error
    if needed > free:
        raise ExportError(
            f"not enough room in {printable(str(folder))}: up to {needed} bytes are needed, {free} are free"
        )


def _keeps_holes(folder: Path, create: Create) -> bool:
    """Whether what is never written takes no room in ``folder``; True where the platform cannot tell."""
    with create(folder / "holes") as probe:
        probe.finish(_PROBE_SIZE)
        blocks = getattr(probe.partial.stat(), "st_blocks", 0)
    return int(blocks) * 512 < _PROBE_SIZE


@dataclass(frozen=True, slots=True)
class _Made:
    """The files: of each chain from the base on, and the truth by depth."""

    flat: Path
    layers: dict[ImageFormat, list[Path]]
    truth: dict[int, Truth]


def _make(job: DepthJob, folder: Path, create: Create, sample: Sample, tell: Tell) -> _Made:
    """Make all chains; the flat disk goes along with the first one."""
    made = _Made(folder / "flat.raw", {}, {})
    with create(made.flat) as flat:
        for image_format in job.formats:
            paths = made.layers.setdefault(image_format, [])
            is_first = len(made.layers) == 1
            home = _new_folder(folder / image_format)
            tell(f"making the {image_format.upper()} chain")
            truth = flat if is_first else None
            for path in make_chain(home, job.recipe, Layout(image_format), create, flat=truth):
                depth = len(paths)
                paths.append(path)
                tell(f"making the {image_format.upper()} chain: {depth + 1} of {job.recipe.layers} layers")
                if is_first and depth in job.depths:
                    made.truth[depth] = _truth_now(flat, sample)
        flat.finish(job.recipe.virtual_size)
        flat.publish()
    return made


def _new_folder(path: Path) -> Path:
    try:
        path.mkdir()
    except FileExistsError as error:
        raise TargetExistsError(f"{printable(str(path))} exists already") from error
    except OSError as error:
        raise TargetError(f"cannot create {printable(str(path))}: {error.strerror}") from error
    return path


def _truth_now(flat: Output, sample: Sample) -> Truth:
    """What the flat disk holds while it is being written."""
    with FileSource(flat.partial) as source:

        def sums(offsets: npt.NDArray[np.int64], length: int) -> tuple[int, ...]:
            return tuple(crc32(source.read_exact(at, length, field="flat disk")) for at in offsets.tolist())

        return Truth(sums(sample.reads, READ_SIZE), sums(sample.pieces, sample.piece_size))


def _settings(job: DepthJob, engine: str, libvhdi: str) -> dict[str, int | float | str]:
    low, high = job.recipe.run_lengths
    return {
        "size": job.recipe.virtual_size,
        "fill": job.recipe.fill,
        "share": job.recipe.rewrite,
        "grain": job.recipe.grain,
        "write_min": low,
        "write_max": high,
        "seed": job.recipe.seed,
        "depths": ",".join(map(str, job.depths)),
        "formats": ",".join(map(str, job.formats)),
        "rounds": job.rounds,
        "reads": job.reads,
        "engine": engine,
        "libvhdi": libvhdi,
    }


def describe_machine() -> str:
    """The machine in a line: what it is, how many processors, and with what it was measured."""
    parts = (
        platform.machine() or "unknown processor",
        f"{os.cpu_count()} CPUs",
        f"{platform.system()} {platform.release()}",
        f"Python {platform.python_version()}",
        f"NumPy {np.__version__}",
    )
    return printable(", ".join(parts))
