"""Export jobs: a point in time as one new file, with its manifest.

A job is a value: paths and options in, a report out, so that any thread, process or machine can run it.

::

    chain sound? ──► temporary files ──► move, digest ──► inputs unchanged? ──► manifest ──► both published
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from vhdtool import __version__
from vhdtool.chain.chain import Chain
from vhdtool.errors import ExportError, Finding, TargetError, printable
from vhdtool.export.copy import (
    CancelToken,
    Damaged,
    Mover,
    ProgressCallback,
    Reporter,
    estimated_data,
)
from vhdtool.export.digest import ChunkDigester, WholeDigest
from vhdtool.export.manifest import (
    ChunkRecord,
    DamagedRange,
    DamageRecord,
    manifest_path,
    write_manifest,
)
from vhdtool.export.target import StdoutTarget, TargetFile, mode_like
from vhdtool.export.watch import SourceWatch
from vhdtool.source import files_of

if TYPE_CHECKING:
    from vhdtool.chain.chain import Layer
    from vhdtool.chain.engine import Engine
    from vhdtool.chain.paths import PathMap

STDOUT: Final = "-"
Format = Literal["raw"]
AnyPath = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What an export did.  Picklable.  Sizes are bytes.

    Attributes:
        target: the path as given, or ``-``.
        virtual_size: of the disk.
        file_size: of the target.
        data_bytes: in chunks that are not all zeros, as in the manifest.
        read_bytes: taken from the layers.
        written_bytes: written to the target; the rest are holes.
        root: over all chunk digests, see digest.py.
        digests: of the whole disk, by name, as asked for.
        manifest: where it was written; None for a stream.
        damaged: ranges exported as zeros, the first ``DamageRecord.KEPT``; all are in the manifest.
        damaged_count, damaged_bytes: of all those.
        findings: of every layer, links and chain.
        started, finished: UTC.
    """

    target: str
    format: str
    virtual_size: int
    file_size: int
    data_bytes: int
    read_bytes: int
    written_bytes: int
    root: str
    digests: Mapping[str, str]
    manifest: Path | None
    damaged: tuple[DamagedRange, ...]
    damaged_count: int
    damaged_bytes: int
    findings: tuple[Finding, ...]
    started: datetime
    finished: datetime


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """How an export is written.

    Attributes:
        format: of the target.
        force: replace what stands under the target's name.
        damaged: what to do with ranges that cannot be read: "refuse" the export, or export "zero"s there
            and list them.
        hashes: whole-disk digests to compute, names of ``digest.WHOLE_ALGORITHMS``.
        manifest: where it goes; None is ``TARGET.manifest.json``, and none at all for a stream.
        sync: wait until the disk has everything before anything is published.
        engine: what resolves the chain: "numpy", "numba", or "auto" for the one that costs less.
    """

    format: Format = "raw"
    force: bool = False
    damaged: Damaged = "refuse"
    hashes: tuple[str, ...] = ()
    manifest: Path | None = None
    sync: bool = True
    engine: Engine = "auto"


@dataclass(frozen=True, slots=True)
class ExportJob:
    """One export, as a value.  Picklable.

    Attributes:
        leaf: the image whose disk is exported.
        target: a path, or ``-`` for standard output.
        search, maps, log, ignore_checksums, allow_mismatch: how the chain is opened, see ``open_chain``.
        options: how the target is written.
    """

    leaf: Path
    target: str
    search: tuple[Path, ...] = ()
    maps: tuple[PathMap | str, ...] = ()
    log: Literal["before", "after"] = "after"
    ignore_checksums: bool = False
    allow_mismatch: bool = False
    options: ExportOptions = ExportOptions()

    def run(
        self, *, progress: ProgressCallback | None = None, cancel: CancelToken | None = None
    ) -> ExportReport:
        """Do it; errors as ``export_image``."""
        from vhdtool.chain.discover import open_chain

        with open_chain(
            self.leaf,
            search=self.search,
            maps=self.maps,
            log=self.log,
            ignore_checksums=self.ignore_checksums,
            allow_mismatch=self.allow_mismatch,
        ) as chain:
            return _export(chain, self.target, self.options, progress, cancel)


def export_image(
    chain: Chain | AnyPath,
    target: AnyPath,
    *,
    format: Format = "raw",  # noqa: A002 - the name is promised
    force: bool = False,
    damaged: Damaged = "refuse",
    hashes: Sequence[str] = (),
    manifest: AnyPath | None = None,
    sync: bool = True,
    engine: Engine = "auto",
    progress: ProgressCallback | None = None,
    cancel: CancelToken | None = None,
) -> ExportReport:
    """Export the disk of ``chain`` as one new file; nothing appears under its name before it is whole.

    Args:
        chain: an open chain, or a leaf (whose parents are found by its own words; :class:`ExportJob` has
            the options for more).
        target: a path; ``-`` is standard output.
        format, force, damaged, hashes, manifest, sync, engine: see :class:`ExportOptions`.
        progress: called a few times a second, from this thread.
        cancel: its ``cancel()`` stops the job.

    Raises:
        FormatError, ChainError, InputError: the chain is not sound or cannot be read.
        TargetExistsError, TargetError: the target (or the manifest) is there already or cannot be made.
        SourceChangedError: an input was written to meanwhile.
        ExportError: the target cannot be written.
        CancelledError: stopped through ``cancel``.
        ValueError: an unknown option.
    """
    options = ExportOptions(
        format=format,
        force=force,
        damaged=damaged,
        hashes=tuple(hashes),
        manifest=None if manifest is None else Path(manifest),
        sync=sync,
        engine=engine,
    )
    if isinstance(chain, Chain):
        return _export(chain, os.fspath(target), options, progress, cancel)
    return ExportJob(Path(chain), os.fspath(target), options=options).run(progress=progress, cancel=cancel)


def _export(
    chain: Chain,
    target_name: str,
    options: ExportOptions,
    progress: ProgressCallback | None,
    cancel: CancelToken | None,
) -> ExportReport:
    if options.format != "raw":
        raise ValueError(f"unknown format {options.format!r}")
    if options.damaged not in ("refuse", "zero"):
        raise ValueError(f"damaged ranges are 'refuse' or 'zero', not {options.damaged!r}")
    started = datetime.now(UTC)
    watch = SourceWatch(chain.files())
    size = chain.virtual_size
    allow_damaged = options.damaged == "zero"
    with ExitStack() as stack, watch.guarding():
        whole = [WholeDigest(name) for name in dict.fromkeys(options.hashes)]
        # Before anything is made: an unsound chain leaves no trace of an attempt.
        chain.require_sound(allow_damaged=allow_damaged)
        # A digest of the whole disk has to go through the zeros too: then what counts is the position.
        estimate = None if progress is None or whole else estimated_data(chain)
        reporter = Reporter("copy", size, estimate=estimate, progress=progress, cancel=cancel)
        target, manifest = _open_targets(stack, chain, target_name, options, reporter)
        folder = _spool_folder(target, manifest)
        chunks = stack.enter_context(closing(ChunkRecord(size, folder)))
        damage = stack.enter_context(closing(DamageRecord(folder)))
        mover = Mover(
            [image.source for image in chain.images],
            target,
            consumers=[ChunkDigester(chunks), *whole],
            reporter=reporter,
            damaged=options.damaged,
            damage=damage,
        )
        moved = mover.run(chain.windows(allow_damaged=allow_damaged, engine=options.engine))
        chunks.finish()
        damage.finish()
        watch.check()
        target.finish(size)
        finished = datetime.now(UTC)
        report = ExportReport(
            target=target_name,
            format=options.format,
            virtual_size=size,
            file_size=size,
            data_bytes=chunks.data_bytes,
            read_bytes=moved.read,
            written_bytes=moved.written,
            root=chunks.root(),
            digests={digest.name: digest.hexdigest() for digest in whole},
            manifest=None if manifest is None else Path(manifest.name),
            damaged=tuple(damage.kept),
            damaged_count=damage.count,
            damaged_bytes=damage.bytes,
            findings=chain.all_findings(),
            started=started,
            finished=finished,
        )
        if manifest is not None:
            _write_manifest(manifest, chain, report, chunks, damage)
            if options.force:
                # At no moment may an old manifest stand beside a new image.
                manifest.remove_old()
        target.publish()
        if manifest is not None:
            manifest.publish()
    return report


def _open_targets(
    stack: ExitStack, chain: Chain, target_name: str, options: ExportOptions, reporter: Reporter
) -> tuple[TargetFile | StdoutTarget, TargetFile | None]:
    """The target and the manifest, both made before a byte moves: what cannot be made is known then."""
    inputs = [file.path for file in chain.files()]
    mode = mode_like(inputs)
    target: TargetFile | StdoutTarget
    if target_name == STDOUT:
        target = stack.enter_context(StdoutTarget(inputs=inputs, check=reporter.check))
        manifest_name = options.manifest
    else:
        target = stack.enter_context(
            TargetFile(target_name, force=options.force, inputs=inputs, mode=mode, sync=options.sync)
        )
        manifest_name = options.manifest or manifest_path(Path(target_name))
    if manifest_name is None:
        return target, None
    manifest = stack.enter_context(
        TargetFile(manifest_name, force=options.force, inputs=inputs, mode=mode, sync=options.sync)
    )
    if isinstance(target, TargetFile):
        if _name_key(target.path) == _name_key(manifest.path):
            raise TargetError(f"{printable(target_name)} cannot be both the image and its manifest")
        target.set_size(chain.virtual_size)
    return target, manifest


def _name_key(path: Path) -> str:
    return os.path.realpath(path).casefold()


def _spool_folder(target: TargetFile | StdoutTarget, manifest: TargetFile | None) -> Path:
    """Where lists that are too long for memory grow: beside the results there is room."""
    for file in (target, manifest):
        if isinstance(file, TargetFile):
            return file.path.parent
    import tempfile

    return Path(tempfile.gettempdir())


def _write_manifest(
    manifest: TargetFile, chain: Chain, report: ExportReport, chunks: ChunkRecord, damage: DamageRecord
) -> None:
    head = {
        "vhdtool_version": __version__,
        "started": utc_text(report.started),
        "finished": utc_text(report.finished),
        "target": {
            "path": report.target,
            "format": report.format,
            "subformat": "fixed",
            "virtual_size": report.virtual_size,
            "file_size": report.file_size,
        },
        "point_in_time": str(chain.layers[0].path),
        "log_replayed": any(image.log.replayed for image in chain.images),
    }
    tail = {
        "layers": [_layer_json(layer) for layer in chain.layers],
        "findings": [finding.document() for finding in chain.findings],
    }
    try:
        write_manifest(manifest, head=head, chunks=chunks, digests=report.digests, tail=tail, damaged=damage)
    except OSError as error:  # of a temporary list; the target's own are ours already
        raise ExportError(f"cannot write {printable(manifest.name)}: {error.strerror}") from error


def _layer_json(layer: Layer) -> dict[str, Any]:
    image = layer.image
    files = files_of(image.source)
    return {
        "path": str(layer.path),
        "size": sum(file.opened_as.size for file in files) if files else image.source.size,
        "mtime": utc_text(datetime.fromtimestamp(files[0].mtime, UTC)) if files else None,
        "write_id": None if image.write_id is None else str(image.write_id),
        "findings": [finding.document() for finding in image.findings],
    }


def utc_text(moment: datetime) -> str:
    """ISO 8601 in UTC: ``2026-01-31T12:00:00Z``, with microseconds where there are some."""
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat() + "Z"
