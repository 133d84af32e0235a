"""Verification: an exported image read back, against its manifest or against its chain."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from vhdtool.chain.chain import Chain, FoundBy, Layer, LinkVerdict
from vhdtool.errors import EXIT_FOUND, EXIT_UNSUPPORTED, Finding, FindingLog, Location, Severity, hexadecimal
from vhdtool.export.compare import Comparison, Ranges, compare_contents
from vhdtool.export.copy import CancelToken, Mover, ProgressCallback, Reporter
from vhdtool.export.digest import WHOLE_ALGORITHMS, ChunkDigester, WholeDigest, zeros_digest
from vhdtool.export.manifest import ChunkRun, Manifest, manifest_path
from vhdtool.export.pipeline import Consumer
from vhdtool.export.watch import SourceWatch
from vhdtool.formats.raw import RawImage
from vhdtool.model.identity import ImageFormat
from vhdtool.model.state import Run
from vhdtool.source import ByteSource, FileSource

AnyPath = str | os.PathLike[str]
RANGES_KEPT: Final = 1000


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
    damaged_count: int = 0
    damaged_bytes: int = 0

    @property
    def ok(self) -> bool:
        """Whether the target is what was exported."""
        return self.size_expected == self.size_found and not self.bad_count and not self.bad_digests

    @property
    def exit_code(self) -> int:
        """0, or 1 for a mismatch."""
        return 0 if self.ok else EXIT_FOUND

    @property
    def findings(self) -> tuple[Finding, ...]:
        """The mismatches as findings: ``verify.size``, ``verify.chunk``."""
        found = []
        if self.size_expected != self.size_found:
            sizes = (f"{self.size_found} bytes", f"{self.size_expected} bytes")
            what = "the disk has another size than the one that was exported"
            found.append(Finding("verify.size", Severity.ERROR, Location(self.target), what, *sizes))
        for start, length in self.bad_ranges:
            guest = f"{hexadecimal(start)} to {hexadecimal(start + length)}"
            what = f"guest bytes {guest} are not what was exported"
            found.append(Finding("verify.chunk", Severity.ERROR, Location(self.target), what))
        for name in self.bad_digests:
            what = f"the {name} of the whole disk is not the one in the manifest"
            found.append(Finding("verify.digest", Severity.ERROR, Location(self.target), what))
        return tuple(found)


def verify_image(
    target: AnyPath,
    manifest: AnyPath | None = None,
    *,
    progress: ProgressCallback | None = None,
    cancel: CancelToken | None = None,
) -> VerifyReport:
    """Read ``target`` back and compare every chunk with its manifest.

    Holes of the file are not read: they are zeros by the file system's word.  Digests of the whole disk that
    the manifest has are compared too.

    Args:
        manifest: None is ``TARGET.manifest.json``.
        progress, cancel: as for an export.

    Raises:
        FileMissingError, ReadError: target or manifest cannot be read.
        FormatError: the manifest is cut or forged (``manifest.*``), or the target is no image of its format.
        SourceChangedError: the target was written to meanwhile.
        CancelledError: stopped through ``cancel``.
    """
    path = Path(target)
    with ExitStack() as stack:
        # The target first: that it is missing is a plainer message than that its manifest is.
        content = _Content.open(stack, path, None if manifest is None else Path(manifest))
        expected = content.manifest
        reporter = Reporter("verify", content.size, estimate=content.size, progress=progress, cancel=cancel)
        judge = _Judge(expected)
        digester = ChunkDigester(judge, expected.chunk_size)
        whole = [WholeDigest(name) for name in expected.digests if name in WHOLE_ALGORITHMS]
        watch = SourceWatch(content.files)
        with watch.guarding():
            consumers: list[Consumer] = [digester, *whole]
            moved = Mover(content.sources, None, consumers=consumers, reporter=reporter).run(content.plans)
        watch.check()
        judge.missing(min(content.size, expected.size))
        return VerifyReport(
            target=str(target),
            manifest=str(expected.path),
            size_expected=expected.size,
            size_found=content.size,
            bad_ranges=tuple(judge.bad.kept),
            bad_count=judge.bad.count,
            bad_bytes=judge.bad.bytes,
            checked_bytes=moved.read,
            root=expected.root,
            bad_digests=tuple(d.name for d in whole if d.hexdigest() != expected.digests[d.name]),
            damaged_count=expected.damaged_count,
            damaged_bytes=expected.damaged_bytes,
        )


def verify_against(
    target: AnyPath | Chain,
    chain: Chain,
    *,
    raw: bool = False,
    progress: ProgressCallback | None = None,
    cancel: CancelToken | None = None,
) -> Comparison:
    """Compare the disk in ``target`` with the disk of ``chain``, both read again.

    Args:
        target: a raw disk or any image (with its parents, which are found by its own words), or one that
            is open already.
        raw: take the file for a raw disk whatever it begins and ends with: a disk may hold an image.

    Raises:
        FileMissingError, FormatError, ChainError, ReadError: the target cannot be opened, or one of the two
            cannot be read.
        SourceChangedError: one of them was written to meanwhile.
        CancelledError: stopped through ``cancel``.
    """
    if isinstance(target, Chain):
        return compare_contents(target, chain, progress=progress, cancel=cancel)
    with _open_target(Path(target), raw=raw) as other:
        return compare_contents(other, chain, progress=progress, cancel=cancel)


def _open_target(path: Path, *, raw: bool) -> Chain:
    if not raw:
        from vhdtool.chain.discover import open_chain

        return open_chain(path)
    source = FileSource(path)
    try:
        return Chain([Layer(RawImage(source), path, FoundBy.GIVEN, LinkVerdict.BASE)])
    except BaseException:
        source.close()
        raise


@dataclass(frozen=True, slots=True)
class _Content:
    """The disk in an exported image, as plans and sources; ``size`` may not be what the manifest says."""

    manifest: Manifest
    size: int
    sources: Sequence[ByteSource]
    files: Sequence[FileSource]
    plans: Iterable[Iterable[Run]]

    @classmethod
    def open(cls, stack: ExitStack, path: Path, manifest_name: Path | None) -> Self:
        """Open ``path`` and its manifest; ``stack`` closes them."""
        file = stack.enter_context(FileSource(path))
        manifest = stack.enter_context(Manifest(manifest_name or manifest_path(path)))
        kind = manifest.target.get("format")
        if kind == ImageFormat.RAW:
            # Nothing in a raw disk is looked at: what it holds may well be an image.
            length = min(file.size, manifest.size)
            plans = [[Run(0, length, 0, 0)]] if length else []
            return cls(manifest, file.size, [file], [file], plans)
        if kind not in (ImageFormat.VHD, ImageFormat.VHDX):
            FindingLog(str(manifest.path)).refuse(
                "manifest.format",
                "an unknown target format",
                found=str(kind)[:100],
                expected="raw, vhd or vhdx",
                exit_code=EXIT_UNSUPPORTED,
            )
        chain = stack.enter_context(_open_target(path, raw=False))
        stop = min(chain.virtual_size, manifest.size)
        sources = [image.source for image in chain.images]
        return cls(manifest, chain.virtual_size, sources, chain.files(), chain.windows(0, stop))


class _Judge:
    """Compares chunks with a manifest's, as they are digested.

    Attributes:
        bad: guest ranges that are not what the manifest says.
    """

    def __init__(self, manifest: Manifest) -> None:
        self.bad = Ranges(RANGES_KEPT)
        self._manifest = manifest
        self._runs = manifest.runs()
        self._expected = ChunkRun(0, 0, None)
        self._chunk = 0
        self._zeros = zeros_digest(manifest.chunk_size)

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

    def missing(self, size: int) -> None:
        """The target ends at byte ``size``: what the manifest has behind that is bad."""
        self.bad.add(size, self._manifest.size - size)

    def _agrees(self, digest: bytes | None) -> bool:
        expected = self._expected.digest
        # A manifest may spell the digest of zeros out.
        return digest == expected or (digest is None and expected == self._zeros)

    def _add_bad(self, chunk: int, count: int) -> None:
        start = chunk * self._manifest.chunk_size
        stop = min(start + count * self._manifest.chunk_size, self._manifest.size)
        self.bad.add(start, stop - start)
