"""Verification: an exported image read back, against its manifest or against its chain.

Against the manifest nothing of the file is left out::

    manifest   seal, signature ─► chunks tile the disk ─► root
    target     guest data ───────► chunk digests, digests of the whole disk
               all the rest ─────► structure digest (headers, tables, bitmaps, padding, slack)
               headers ──────────► format, sizes, identities
    increment  only what it holds itself is read; then whether its parent is where its own words lead

Against the chain both sides are read by the second reader (naive.py).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from vhdtool.chain.chain import Chain, FoundBy, Layer, LinkVerdict
from vhdtool.export.gentle.throttle import Limits, Pace
from vhdtool.export.gentle.watch import SourceWatch
from vhdtool.export.moving.progress import CancelToken, ProgressCallback, Reporter
from vhdtool.export.proof.against import compare_naively
from vhdtool.export.proof.comparison import Comparison
from vhdtool.export.proof.manifest import Manifest, manifest_path
from vhdtool.export.proof.naive import NaiveDisk
from vhdtool.export.proof.readback import Sample, Verification, VerifyReport, new_seed, open_content
from vhdtool.export.proof.seal import load_verifier
from vhdtool.formats.raw import RawImage
from vhdtool.source import FileSource

if TYPE_CHECKING:
    from vhdtool.chain.paths import PathMap

AnyPath = str | os.PathLike[str]

__all__ = ["Sample", "VerifyReport", "verify_against", "verify_image"]


def verify_image(
    target: AnyPath,
    manifest: AnyPath | None = None,
    *,
    sample: float | None = None,
    seed: int | None = None,
    key: AnyPath | None = None,
    search: Sequence[AnyPath] = (),
    maps: Sequence[PathMap | str] = (),
    allow_mismatch: bool = False,
    limits: Limits = Limits(),  # noqa: B008 - immutable
    progress: ProgressCallback | None = None,
    cancel: CancelToken | None = None,
) -> VerifyReport:
    """Read ``target`` back and compare all of it with its manifest.

    Holes of the file are not read: they are zeros by the file system's word.  Of an increment only what it
    holds itself is read.

    Args:
        manifest: None is ``TARGET.manifest.json``.
        sample: read only so many percent of the chunks with data, chosen at random; tables and headers
            are compared all the same.
        seed: chooses the same chunks again.
        key: a public key file; the manifest must be signed by its owner.
        search, maps, allow_mismatch: how an increment's parent is found, see ``open_chain``.
        limits: how gently the target is read.
        progress, cancel: as for an export.

    Raises:
        FileMissingError, ReadError: target, manifest or key cannot be read.
        FormatError: the manifest is cut, forged or not signed by ``key`` (``manifest.*``), or the target is
            no image of its format.
        KeyFileError, MissingPackageError: the key cannot be used.
        SourceChangedError: the target was written to meanwhile.
        CancelledError: stopped through ``cancel``.
        ValueError: ``sample`` is no percentage.
    """
    if sample is not None and not 0 < sample <= 100:
        raise ValueError(f"a sample of {sample} percent")
    verifier = None if key is None else load_verifier(key)
    with ExitStack() as stack:
        # The target first: that it is missing is a plainer message than that its manifest is.
        path = Path(target)
        file = stack.enter_context(FileSource(path))
        expected = stack.enter_context(
            Manifest(manifest_path(path) if manifest is None else manifest, key=verifier)
        )
        watch = SourceWatch([file, expected.file])
        reporter = Reporter(
            "verify",
            expected.size,
            estimate=expected.size,
            progress=progress,
            cancel=cancel,
            tick=watch.tick,
            slowed=lambda: pace.slowed,
        )
        pace = stack.enter_context(Pace(limits, check=reporter.check))
        with watch.guarding():
            content = open_content(stack, file, expected)
            verification = Verification(expected, file, content, pace, reporter)
            if sample is None:
                verification.read_all()
            else:
                chosen = new_seed() if seed is None else seed
                verification.read_sample(sample, chosen)
            verification.check_file()
        watch.check()
        if expected.base is not None:
            verification.find_parent(path, search=search, maps=maps, allow_mismatch=allow_mismatch)
        return verification.report(str(target))


def verify_against(
    target: AnyPath | Chain,
    chain: Chain,
    *,
    raw: bool = False,
    limits: Limits = Limits(),  # noqa: B008 - immutable
    progress: ProgressCallback | None = None,
    cancel: CancelToken | None = None,
) -> Comparison:
    """Compare the disk in ``target`` with the disk of ``chain``, both read by the second reader.

    Args:
        target: a raw disk or any image (with its parents, which are found by its own words), or one that
            is open already.
        raw: take the file for a raw disk whatever it begins and ends with: a disk may hold an image.
        limits: how gently both are read.

    Raises:
        FileMissingError, FormatError, ChainError, ReadError: the target cannot be opened, or one of the two
            cannot be read.
        SourceChangedError: one of them was written to meanwhile.
        CancelledError: stopped through ``cancel``.
    """
    with ExitStack() as stack:
        other = target
        if not isinstance(other, Chain):
            other = stack.enter_context(_open_target(Path(other), raw=raw))
        common = min(other.virtual_size, chain.virtual_size)
        watch = SourceWatch([*other.files(), *chain.files()])
        reporter = Reporter(
            "verify",
            common,
            progress=progress,
            cancel=cancel,
            tick=watch.tick,
            slowed=lambda: pace.slowed,
        )
        pace = stack.enter_context(Pace(limits, check=reporter.check))
        with watch.guarding():
            for each in (other, chain):
                each.require_sound()
            a, b = (
                NaiveDisk(each.images, [pace.source(image.source) for image in each.images])
                for each in (other, chain)
            )
            comparison = compare_naively(a, b, reporter.update)
        watch.check()
        reporter.finish(comparison.read_bytes)
        return comparison


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
