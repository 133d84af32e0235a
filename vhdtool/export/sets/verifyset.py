"""Verification of a set: each image against its manifest, each link inside the set, and the set's own seal.

::

    vhdtool-set.json   seal, signature ─► names, parents in front of their children
    each image         verify_image against its manifest; that is the one that the set was sealed with
    each increment     its own words lead to the image of the set that is its parent
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from vhdtool.chain.discover import open_chain
from vhdtool.chain.link import refusal_finding
from vhdtool.errors import (
    EXIT_FOUND,
    ExportError,
    Finding,
    FindingLog,
    Location,
    Severity,
    VhdtoolError,
)
from vhdtool.export.gentle.throttle import Limits
from vhdtool.export.moving.progress import CancelToken, Progress, ProgressCallback
from vhdtool.export.proof.readback import Sample, new_seed
from vhdtool.export.proof.seal import Verifier, check_sealed, load_verifier
from vhdtool.export.proof.verify import VerifyReport, verify_image
from vhdtool.export.sets.setfile import SetImage, SetManifest
from vhdtool.formats.registry import open_image
from vhdtool.model.identity import DiskType
from vhdtool.source import FileSource

AnyPath = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class ImageVerdict:
    """What was found of one image of a set.  Picklable.

    Attributes:
        name: of its file; ``parent`` the one that it is made on.
        point_in_time: the image whose disk it is.
        report: of reading it back; None when that was not possible.
        findings: whatever is wrong.
    """

    name: str
    parent: str | None
    point_in_time: str
    report: VerifyReport | None
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is."""
        return not self.findings


@dataclass(frozen=True, slots=True)
class SetVerifyReport:
    """What verifying a set found.  Picklable.

    Attributes:
        folder: as given; ``manifest`` the set's.
        layout: of the set.
        images: in the set's order.
        skipped: images of the tree that the set says it does not have.
        signature: what seal and signature of the set prove, in words; ``signer`` is the key.
        sample: what was read, when that was not all.
    """

    folder: str
    manifest: str
    layout: str
    images: tuple[ImageVerdict, ...]
    skipped: tuple[str, ...]
    signature: str
    signer: str | None
    sample: Sample | None = None

    @property
    def ok(self) -> bool:
        """Whether all images are what was exported, and where they belong."""
        return all(image.ok for image in self.images)

    @property
    def exit_code(self) -> int:
        """0, or 1 when something is wrong."""
        return 0 if self.ok else EXIT_FOUND

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Of all images."""
        return tuple(finding for image in self.images for finding in image.findings)

    @property
    def checked_bytes(self) -> int:
        """Data that was read."""
        return sum(image.report.checked_bytes for image in self.images if image.report is not None)


def verify_set(
    folder: AnyPath,
    *,
    sample: float | None = None,
    seed: int | None = None,
    key: AnyPath | None = None,
    limits: Limits = Limits(),  # noqa: B008 - immutable
    progress: ProgressCallback | None = None,
    cancel: CancelToken | None = None,
) -> SetVerifyReport:
    """Read every image of the set in ``folder`` back.  What is wrong with one is no reason to stop.

    Args:
        sample, seed, key, limits: as for :func:`~vhdtool.export.proof.verify.verify_image`; the set's own
            manifest must be signed by the key's owner, too.
        progress, cancel: over all images.

    Raises:
        FileMissingError, ReadError: the set's manifest or the key cannot be read.
        FormatError: the set's manifest is cut, forged, or not signed by ``key`` (``manifest.*``).
        SourceChangedError: an image was written to meanwhile.
        CancelledError: stopped through ``cancel``.
    """
    if sample is not None and seed is None:
        seed = new_seed()  # one for all images
    verifier = None if key is None else load_verifier(key)
    expected = SetManifest(folder, key=verifier)
    done = _Done(progress, expected.images)
    verdicts = []
    by_name = {image.name: image for image in expected.images}
    for image in expected.images:
        report, findings = None, []
        path = expected.folder / image.name
        try:
            findings += _against_set(expected, image, verifier)
            report = verify_image(
                path,
                expected.folder / image.manifest,
                sample=sample,
                seed=seed,
                key=key,
                limits=limits,
                progress=None if progress is None else done.tell,
                cancel=cancel,
            )
            findings += report.findings
            above = None if image.parent is None else by_name[image.parent]
            findings += _link_findings(expected.folder, image, above)
        except ExportError:  # stopped, or the file was written to
            raise
        except VhdtoolError as error:
            findings.append(refusal_finding(path, error))
        done.end(image, report)
        verdicts.append(
            ImageVerdict(
                image.name, image.parent, image.point_in_time, report, tuple(dict.fromkeys(findings))
            )
        )
    signer = expected.seal.signer
    return SetVerifyReport(
        folder=str(folder),
        manifest=str(expected.path),
        layout=expected.layout,
        images=tuple(verdicts),
        skipped=tuple(expected.skipped),
        signature=str(expected.seal),
        signer=None if signer is None else signer.hex(),
        sample=None if sample is None else _sampled(sample, seed or 0, verdicts),
    )


def _sampled(percent: float, seed: int, verdicts: Sequence[ImageVerdict]) -> Sample:
    """What was read of all images together."""
    samples = [v.report.sample for v in verdicts if v.report is not None and v.report.sample is not None]
    return Sample(percent, seed, sum(each.chunks for each in samples), sum(each.of for each in samples))


class _Done:
    """Progress over all images, made of that of each."""

    def __init__(self, progress: ProgressCallback | None, images: Sequence[SetImage]) -> None:
        self._progress = progress
        self._size = sum(image.virtual_size for image in images)
        self._position = self._bytes = 0

    def tell(self, state: Progress) -> None:
        """Of one image."""
        if self._progress is not None:
            done = self._bytes + state.done
            position = min(self._size, self._position + state.position)
            self._progress(replace(state, done=done, total=None, position=position, virtual_size=self._size))

    def end(self, image: SetImage, report: VerifyReport | None) -> None:
        """It is done."""
        self._position += image.virtual_size
        self._bytes += 0 if report is None else report.checked_bytes


def _against_set(expected: SetManifest, image: SetImage, key: Verifier | None) -> list[Finding]:
    """Whether the manifest of ``image`` is the one that the set was sealed with."""
    path = expected.folder / image.manifest
    with FileSource(path) as source:
        seal = check_sealed(source, FindingLog(str(path)), key).digest.hex()
    if seal == image.manifest_seal:
        return []
    what = "this is a whole manifest, and another one than the set was sealed with"
    place = Location(str(path), None, "seal")
    return [Finding("verify.set_manifest", Severity.ERROR, place, what, seal, image.manifest_seal)]


def _link_findings(folder: Path, image: SetImage, above: SetImage | None) -> list[Finding]:
    """Whether an increment's own words lead to its parent in the set."""
    if image.format == "raw":
        return []
    path = folder / image.name
    with closing(open_image(path)) as opened:
        is_child = opened.type is DiskType.DIFFERENCING
    if above is None and not is_child:
        return []
    if above is None or not is_child:
        what = "this is an increment, and the set knows it as a full image"
        if above is not None:
            what = f"this is a full image, and the set knows it as an increment on {above.name}"
        return [_wrong_parent(path, what)]
    with open_chain(path) as chain:
        parent = chain.layers[1]
        wanted = folder / above.name
        if not os.path.samefile(parent.path, wanted):  # noqa: PTH121
            return [
                _wrong_parent(path, "its parent was found outside of the set", str(parent.path), str(wanted))
            ]
        if str(parent.image.write_id) != above.write_id:
            what = "its parent is another image than the set knows"
            return [_wrong_parent(path, what, str(parent.image.write_id), str(above.write_id))]
    return []


def _wrong_parent(path: Path, what: str, found: str = "", expected: str = "") -> Finding:
    place = Location(str(path), None, "parent")
    return Finding("verify.set_parent", Severity.ERROR, place, what, found, expected)
