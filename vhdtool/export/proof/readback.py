"""An exported image read back and compared with its manifest, part by part.

See verify.py for what is compared.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from vhdtool.errors import (
    EXIT_FOUND,
    Finding,
    Location,
    Severity,
    UnsupportedError,
    VhdtoolError,
    hexadecimal,
)
from vhdtool.export.gentle.throttle import Pace
from vhdtool.export.moving.copy import Mover
from vhdtool.export.moving.pipeline import Consumer, feed
from vhdtool.export.moving.progress import Reporter
from vhdtool.export.moving.spans import CELL_SIZE, Span, zero_spans
from vhdtool.export.proof.comparison import Ranges
from vhdtool.export.proof.digest import WHOLE_ALGORITHMS, ChunkDigester, ChunkSink, WholeDigest, zeros_digest
from vhdtool.export.proof.manifest import ChunkRun, Manifest
from vhdtool.export.proof.structure import damaged_piece, structure_digest
from vhdtool.formats.image import DiskImage, require_sound
from vhdtool.formats.registry import open_image
from vhdtool.model.plan import ReadPlan, merged
from vhdtool.model.state import Run
from vhdtool.source import ByteSource, FileSource

if TYPE_CHECKING:
    from vhdtool.chain.paths import PathMap

AnyPath = str | os.PathLike[str]
RANGES_KEPT: Final = 1000
# Neighbouring chunks of a sample are read together, so many at most.
_SAMPLE_GROUP: Final = 16


@dataclass(frozen=True, slots=True)
class Sample:
    """How a target was sampled.

    Attributes:
        percent: of the chunks with data that were asked for.
        seed: the same one chooses the same chunks.
        chunks: how many were read, of ``of``, all those with data.
    """

    percent: float
    seed: int
    chunks: int
    of: int


def new_seed() -> int:
    """For a sample that nobody could foresee."""
    return random.SystemRandom().getrandbits(32)


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What reading back found.  Picklable.  Sizes and offsets are bytes.

    Attributes:
        target, manifest: paths as given.
        size_expected, size_found: of the disk.
        bad_ranges: (start, length) of guest bytes that are not what the manifest says, in whole chunks,
            neighbours joined; the first ``RANGES_KEPT``.  What is missing at the end counts, too.
        bad_count, bad_bytes: of all of them.
        checked_bytes: data that was read.
        root: of the manifest; it agreed with the manifest's own chunks.
        bad_digests: names of digests of the whole disk that are others.
        unchecked_digests: names of those that were not looked at: they are of what an increment and its
            parents make together, or only a sample was read.
        other: findings about the file itself: sizes, identities, structure.
        structure_checked: whether all that is not guest data was compared, too.
        sample: None when everything was read.
        signature: what seal and signature of the manifest prove, in words; ``signer`` is the key.
        parent: of an increment, the path of the parent that was found.
        parent_finding: why none was found; ``parent_exit_code`` goes with it.
    """

    target: str
    manifest: str
    size_expected: int
    size_found: int
    bad_ranges: tuple[tuple[int, int], ...]
    bad_count: int
    bad_bytes: int
    checked_bytes: int
    root: str
    bad_digests: tuple[str, ...] = ()
    unchecked_digests: tuple[str, ...] = ()
    damaged_count: int = 0
    damaged_bytes: int = 0
    other: tuple[Finding, ...] = ()
    structure_checked: bool = False
    sample: Sample | None = None
    signature: str = ""
    signer: str | None = None
    parent: str | None = None
    parent_finding: Finding | None = None
    parent_exit_code: int = 0

    @property
    def is_as_exported(self) -> bool:
        """Whether the target itself is what was exported, as far as it was read."""
        sizes = self.size_expected == self.size_found
        return sizes and not (self.bad_count or self.bad_digests or self.other)

    @property
    def ok(self) -> bool:
        """Whether the target is what was exported, and an increment's parent is there."""
        return self.is_as_exported and self.parent_finding is None

    @property
    def exit_code(self) -> int:
        """0; 1 for a mismatch; for an increment that is right itself, what its parent's absence gives."""
        return self.parent_exit_code if self.is_as_exported else EXIT_FOUND

    @property
    def findings(self) -> tuple[Finding, ...]:
        """The mismatches as findings: ``verify.*``, and those about an increment's parent."""
        found = []
        if self.size_expected != self.size_found:
            sizes = (f"{self.size_found} bytes", f"{self.size_expected} bytes")
            what = "the disk has another size than the one that was exported"
            found.append(Finding("verify.size", Severity.ERROR, Location(self.target), what, *sizes))
        found.extend(self.other)
        for start, length in self.bad_ranges:
            guest = f"{hexadecimal(start)} to {hexadecimal(start + length)}"
            what = f"guest bytes {guest} are not what was exported"
            found.append(Finding("verify.chunk", Severity.ERROR, Location(self.target), what))
        for name in self.bad_digests:
            what = f"the {name} of the whole disk is not the one in the manifest"
            found.append(Finding("verify.digest", Severity.ERROR, Location(self.target), what))
        if self.parent_finding is not None:
            found.append(self.parent_finding)
        return tuple(found)


# ------------------------------------------------------------ the target's content


@dataclass(frozen=True, slots=True)
class Content:
    """The disk in an exported image; ``size`` may not be what the manifest says.

    ``plans`` gives guest bytes [start, stop) as plans over ``source``; ``image`` is None for what has no
    structures.  ``is_stream``: it can only be read from end to end, by another program (E01).
    """

    size: int
    source: ByteSource
    image: DiskImage | None
    plans: Callable[[int, int], Iterable[Iterable[Run]]]
    is_stream: bool = False


def open_content(stack: ExitStack, file: FileSource, manifest: Manifest) -> Content:
    """What stands in ``file``, which the manifest says the format of; ``stack`` closes it."""
    kind = manifest.target["format"]
    if kind in ("vhd", "vhdx"):
        image = open_image(file.path, raw=False)
        stack.callback(image.close)
        require_sound(image)
        own = manifest.base is not None
        return Content(
            image.geometry.virtual_size, image.source, image, lambda *part: _plans(image, *part, own=own)
        )
    source: ByteSource = file
    if kind == "raw.zst":
        from vhdtool.formats.seekable import open_seekable

        source = open_seekable(file)
    # Nothing in a raw disk is looked at: what it holds may well be an image.
    return Content(
        source.size,
        source,
        None,
        lambda start, stop: [[Run(start, stop - start, 0, start)]],
        is_stream=kind == "e01",
    )


def _plans(image: DiskImage, start: int, stop: int, *, own: bool) -> Iterator[ReadPlan]:
    """Plans of one image by itself; ``own`` leaves what a parent would hold ``UNHELD``."""
    from vhdtool.chain.flatten import resolve

    for window in resolve([image], start, stop):
        if own:
            yield merged(window.offset, window.length, window.layer, window.file_offset)
        else:
            yield window.plan()


class Verification:
    """One target against its manifest."""

    def __init__(
        self, manifest: Manifest, file: FileSource, content: Content, pace: Pace, reporter: Reporter
    ) -> None:
        self._manifest = manifest
        self._file = file
        self._content = content
        self._sources = [pace.source(content.source)]
        self._reporter = reporter
        self._size = content.size
        self._bad = Ranges(RANGES_KEPT)
        self._checked_bytes = 0
        self._bad_digests: tuple[str, ...] = ()
        self._unchecked_digests = tuple(manifest.digests)
        self._other: list[Finding] = []
        self._structure_checked = False
        self._sample: Sample | None = None
        self._parent: str | None = None
        self._parent_finding: Finding | None = None
        self._parent_exit_code = 0

    def read_all(self) -> None:
        """Compare every chunk, and the digests of the whole disk unless it is an increment."""
        manifest = self._manifest
        judge = _Judge(manifest, self._bad)
        names = [name for name in manifest.digests if name in WHOLE_ALGORITHMS and manifest.base is None]
        whole = [WholeDigest(name) for name in names]
        if self._content.is_stream:
            self._read_stream([ChunkDigester(judge, manifest.chunk_size), *whole])
        else:
            stop = min(self._size, manifest.size)
            mover = self._mover(judge, self._reporter, consumers=whole)
            self._checked_bytes = mover.run(self._content.plans(0, stop) if stop else []).read
        if self._size < manifest.size:
            self._bad.add(self._size, manifest.size - self._size)
        self._bad_digests = tuple(d.name for d in whole if d.hexdigest() != manifest.digests[d.name])
        self._unchecked_digests = tuple(name for name in manifest.digests if name not in names)

    def _mover(self, chunks: ChunkSink, reporter: Reporter, consumers: Sequence[Consumer] = ()) -> Mover:
        size = self._manifest.chunk_size
        return Mover(
            self._sources, None, chunks=chunks, chunk_size=size, consumers=consumers, reporter=reporter
        )

    def _read_stream(self, consumers: Sequence[Consumer]) -> None:
        """The disk in an E01, as another program gives it; what it complains of is a finding."""
        from vhdtool.export.containers.ewf import read_stream

        buffer, fed, stop = bytearray(), 0, self._manifest.size
        with read_stream(self._file.path, check=self._reporter.check) as stream:
            for piece in stream:
                # What is behind the end of the disk only counts.
                buffer += piece[: max(0, stop - fed - len(buffer))]
                if len(buffer) >= CELL_SIZE:
                    fed += _feed(consumers, buffer, fed, len(buffer) - len(buffer) % CELL_SIZE)
                    self._reporter.update(fed, fed)
            if buffer:
                fed += _feed(consumers, buffer, fed, len(buffer))
            self._size = stream.size
            self._other.extend(stream.findings)
        for consumer in consumers:
            consumer.finish()
        self._reporter.finish(fed)
        self._checked_bytes = fed

    def read_sample(self, percent: float, seed: int) -> None:
        """Compare some of the chunks that have data."""
        manifest = self._manifest
        if self._content.is_stream:
            what = "an E01 is read from end to end: there is no sample of one"
            location = Location(self._file.name)
            raise UnsupportedError(Finding("verify.sample", Severity.ERROR, location, what))
        count = 0
        for group in _groups(_picked(manifest, percent, seed)):
            self._reporter.update(self._checked_bytes, group[0][0] * manifest.chunk_size)
            self._read_group(group)
            count += len(group)
        self._reporter.finish(self._checked_bytes)
        self._sample = Sample(percent, seed, count, manifest.data_chunks)

    def _read_group(self, group: Sequence[tuple[int, bytes]]) -> None:
        size = self._manifest.chunk_size
        start = group[0][0] * size
        stop = min((group[-1][0] + 1) * size, self._manifest.size)
        found = _Found()
        end = min(stop, self._size)
        if start < end:
            # What is told of a whole job is told once for each group.
            mover = self._mover(found, Reporter("verify", 0, tick=self._reporter.check))
            self._checked_bytes += mover.run(self._content.plans(start, end), start).read
        for i, (chunk, digest) in enumerate(group):
            if i >= len(found) or found[i] != digest:
                # What the manifest has a digest of is no chunk of zeros, whatever they hash to.
                first = chunk * size
                self._bad.add(first, min(size, self._manifest.size - first))

    def check_file(self) -> None:
        """Compare what the headers say, and everything in the file that is not guest data."""
        target, image = self._manifest.target, self._content.image
        # A raw disk's size has been told; an E01 is more files than this one.
        is_whole_file = self._content.source is not self._file
        if is_whole_file and self._file.size != target["file_size"]:
            what = "the file has another size than the one that was exported"
            self._note("verify.file_size", what, f"{self._file.size} bytes", f"{target['file_size']} bytes")
        if image is not None:
            for name, found in _facts(image).items():
                if found != target[name]:
                    what = f"its {name} is not the one that the manifest names"
                    self._note("verify.identity", what, str(found), str(target[name]), field=name)
        # Where all of the file is read for it, that is more than a sample.
        if target["structure"] is not None and (image is not None or self._sample is None):
            self._check_structure(target["structure"])

    def _check_structure(self, expected: str) -> None:
        found = structure_digest(self._content.image, self._file, check=self._reporter.check)
        self._structure_checked = True
        if found.partition(".")[0] == expected.partition(".")[0]:
            return
        place = damaged_piece(expected, found)
        where = "in several places" if place is None else f"in the 4096 bytes from {hexadecimal(place)} on"
        what = f"what the file holds besides guest data is not what was written, {where}"
        self._note("verify.structure", what, offset=place)

    def find_parent(
        self, path: Path, *, search: Sequence[AnyPath], maps: Sequence[PathMap | str], allow_mismatch: bool
    ) -> None:
        """Look whether an increment's own words lead to its parent, and on to the base."""
        from vhdtool.chain.discover import open_chain

        base = self._manifest.base
        assert base is not None
        try:
            with open_chain(path, search=search, maps=maps, allow_mismatch=allow_mismatch) as chain:
                if len(chain.layers) < 2:  # no child at all: its identity has been told already
                    return
                self._parent = str(chain.layers[1].path)
                found = str(chain.images[1].write_id)
        except VhdtoolError as error:
            location = Location(str(path), None, "parent")
            self._parent_finding = error.finding or Finding(
                "verify.parent", Severity.ERROR, location, f"its parent cannot be opened: {error}"
            )
            self._parent_exit_code = error.exit_code
            return
        if found != base["write_id"]:
            what = "its parent is not the base that the manifest names"
            self._note("verify.parent", what, found, str(base["write_id"]), field="parent")

    def report(self, target: str) -> VerifyReport:
        """All that was found."""
        manifest, seal = self._manifest, self._manifest.seal
        return VerifyReport(
            target=target,
            manifest=str(manifest.path),
            size_expected=manifest.size,
            size_found=self._size,
            bad_ranges=tuple(self._bad.kept),
            bad_count=self._bad.count,
            bad_bytes=self._bad.bytes,
            checked_bytes=self._checked_bytes,
            root=manifest.root,
            bad_digests=self._bad_digests,
            unchecked_digests=self._unchecked_digests,
            damaged_count=manifest.damaged_count,
            damaged_bytes=manifest.damaged_bytes,
            other=tuple(self._other),
            structure_checked=self._structure_checked,
            sample=self._sample,
            signature=str(seal),
            signer=None if seal.signer is None else seal.signer.hex(),
            parent=self._parent,
            parent_finding=self._parent_finding,
            parent_exit_code=self._parent_exit_code,
        )

    def _note(
        self,
        code: str,
        what: str,
        found: str = "",
        expected: str = "",
        *,
        offset: int | None = None,
        field: str = "",
    ) -> None:
        location = Location(self._file.name, offset, field)
        self._other.append(Finding(code, Severity.ERROR, location, what, found, expected))


def _feed(consumers: Sequence[Consumer], buffer: bytearray, start: int, count: int) -> int:
    """Give consumers the first ``count`` bytes of ``buffer``, guest bytes from ``start`` on; drop them."""
    spans: list[Span] = []
    zero_spans(buffer, start, 0, count, spans)
    with memoryview(buffer) as view:
        for consumer in consumers:
            feed(consumer, view, spans)
    del buffer[:count]
    return count


def _facts(image: DiskImage) -> dict[str, Any]:
    """What an image's headers say, as a manifest names it."""
    geometry = image.geometry
    return {
        "format": str(image.format),
        "subformat": str(image.type),
        "block_size": geometry.block_size if geometry.has_table else 0,
        "logical_sector_size": geometry.sector_size,
        "disk_id": None if image.disk_id is None else str(image.disk_id),
        "write_id": None if image.write_id is None else str(image.write_id),
    }


# ------------------------------------------------------------ chunks


class _Found(list[bytes | None]):
    """The digests of a few chunks."""

    def add(self, digest: bytes | None, count: int) -> None:
        """The next ``count`` chunks."""
        self.extend([digest] * count)


def _picked(manifest: Manifest, percent: float, seed: int) -> Iterator[tuple[int, bytes]]:
    """Chunks with data, with their digests, in order: one at random out of each of as many equal parts."""
    total = manifest.data_chunks
    count = max(1, round(total * percent / 100))
    # For choosing, not for secrets: the same seed must choose the same chunks.
    chance = random.Random(seed)
    picks = (
        chance.randrange(i * total // count, (i + 1) * total // count) for i in range(count if total else 0)
    )
    pick = next(picks, None)
    passed = 0
    for run in manifest.runs():
        if not run.digest:
            continue
        while pick is not None and pick < passed + run.count:
            yield run.start + pick - passed, run.digest
            pick = next(picks, None)
        passed += run.count


def _groups(picked: Iterable[tuple[int, bytes]]) -> Iterator[list[tuple[int, bytes]]]:
    """Neighbours together, a few at most."""
    group: list[tuple[int, bytes]] = []
    for pick in picked:
        if group and (pick[0] != group[-1][0] + 1 or len(group) == _SAMPLE_GROUP):
            yield group
            group = []
        group.append(pick)
    if group:
        yield group


class _Judge:
    """Compares chunks with a manifest's, as they are digested.

    Args:
        bad: is told of guest ranges that are not what the manifest says.
    """

    def __init__(self, manifest: Manifest, bad: Ranges) -> None:
        self._bad = bad
        self._manifest = manifest
        self._runs = manifest.runs()
        self._expected = ChunkRun(0, 0, None)
        self._chunk = 0
        self._zeros = zeros_digest(manifest.chunk_size)
        self._last_zeros = zeros_digest(manifest.size - (manifest.chunk_count - 1) * manifest.chunk_size)

    def add(self, digest: bytes | None, count: int) -> None:
        """The next ``count`` chunks of the target have this digest; None is zeros."""
        while count:
            stop = self._expected.start + self._expected.count
            if self._chunk == stop:
                self._expected = next(self._runs)
                continue
            here = min(count, stop - self._chunk)
            if not self._agrees(digest):
                self._add_bad(self._chunk, here)
            self._chunk += here
            count -= here

    def _agrees(self, digest: bytes | None) -> bool:
        expected = self._expected.digest
        if digest == expected or digest is not None:
            return digest == expected
        # A manifest may spell the digest of zeros out; the last chunk is a short one.
        is_last = self._chunk + 1 == self._manifest.chunk_count
        return expected == (self._last_zeros if is_last else self._zeros)

    def _add_bad(self, chunk: int, count: int) -> None:
        start = chunk * self._manifest.chunk_size
        stop = min(start + count * self._manifest.chunk_size, self._manifest.size)
        self._bad.add(start, stop - start)
