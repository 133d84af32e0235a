"""The virtual disk as extents: the JSON of ``qemu-img map``, and a table for people."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from vhdtool.errors import printable
from vhdtool.model.state import Run
from vhdtool.report.text import Document, Paint, count, plain, size_text
from vhdtool.source import ByteSource, PatchedSource

if TYPE_CHECKING:
    from vhdtool.model.plan import ReadPlan


def merged_runs(plans: Iterable[ReadPlan]) -> Iterator[Run]:
    """The runs of all plans in guest order; one that goes on in the next plan is one."""
    held: Run | None = None
    for plan in plans:
        for run in plan:
            if held is None:
                held = run
            elif _goes_on(held, run):
                held = Run(held.offset, held.length + run.length, held.layer, held.file_offset)
            else:
                yield held
                held = run
    if held is not None:
        yield held


def placed_runs(runs: Iterable[Run], sources: Sequence[ByteSource]) -> Iterator[Run]:
    """``runs``, and apart from them what a replayed log covers, with ``file_offset`` -1.

    Args:
        sources: the layers' bytes, indexed by a run's ``layer``.
    """
    for run in runs:
        source = sources[run.layer] if run.layer >= 0 else None
        stop = run.file_offset + run.length
        if not isinstance(source, PatchedSource) or not source.differs(run.file_offset, stop):
            yield run
            continue
        for first, last, in_file in source.stretches(run.file_offset, stop):
            offset = run.offset + first - run.file_offset
            yield Run(offset, last - first, run.layer, first if in_file else -1)


def _goes_on(before: Run, after: Run) -> bool:
    if before.layer != after.layer:
        return False
    return before.layer < 0 or after.file_offset == before.file_offset + before.length


def extent_json(run: Run, files: Sequence[str]) -> Document:
    """One extent in the schema of ``qemu-img map --output=json``.

    Zeros that no layer stores may be several layers' doing; ``depth`` is that of the base then, where a
    look for an unallocated sector ends.  ``present`` is true as with qemu-img: what is read is known.  Data
    that stand in a log that was replayed in memory have no ``offset`` and no ``filename``.
    """
    if run.layer < 0:
        return {
            "start": run.offset,
            "length": run.length,
            "depth": len(files) - 1,
            "present": True,
            "zero": True,
            "data": False,
        }
    place = {} if run.file_offset < 0 else {"offset": run.file_offset, "filename": files[run.layer]}
    return {
        "start": run.offset,
        "length": run.length,
        "depth": run.layer,
        "present": True,
        "zero": False,
        "data": True,
        **place,
    }


def map_json(runs: Iterable[Run], files: Sequence[str]) -> Iterator[str]:
    """The array in pieces, an extent a line: a map of millions is never held."""
    before = "["
    for run in runs:
        yield before + json.dumps(extent_json(run, files))
        before = ",\n"
    yield "]\n" if before != "[" else "[]\n"


def map_text(
    runs: Iterable[Run], files: Sequence[str], virtual_size: int, paint: Paint = plain
) -> Iterator[str]:
    """A table in pieces, then the files and what each gives.

    Args:
        virtual_size: bytes of the disk; makes the columns wide enough before the first line.
    """
    digits = max(10, len(f"{virtual_size:x}") + 2)
    yield paint(
        f"{'Start':>{digits}}  {'Length':>{digits}}  {'Size':>11}  Layer  {'File offset':>14}", "name"
    )
    extents = 0
    given = dict.fromkeys(range(-1, len(files)), 0)
    for run in runs:
        extents += 1
        layer = max(run.layer, -1)
        given[layer] += run.length
        place = f"{run.offset:#{digits}x}  {run.length:#{digits}x}  {size_text(run.length):>11}"
        if layer < 0:
            yield f"\n{place}  " + paint("zeros", "faint")
        else:
            at = f"{run.file_offset:#14x}" if run.file_offset >= 0 else f"{'in its log':>14}"
            yield f"\n{place}  {layer:>5}  {at}"
    yield f"\n\n{count(extents, 'extent')}\n"
    for layer, name in enumerate(files):
        yield f"{layer:>5}  {printable(name)}: {size_text(given[layer])}\n"
    yield f"zeros  {size_text(given[-1])}\n"
