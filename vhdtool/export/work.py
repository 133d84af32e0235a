"""One image on its way: from what is to be moved to what is published.

::

    Content ──► temporary files, journal ──► move, digest ──► inputs unchanged? ──► tables of the image
                   │                                                                    │
                   └── what an interrupted job left (resume.py)                         ▼
                                     both published ◄── manifest ◄── structure of the file read back
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vhdtool import __version__
from vhdtool.chain.chain import Chain
from vhdtool.errors import ExportError, printable
from vhdtool.export.containers.container import Container
from vhdtool.export.containers.shape import Shape
from vhdtool.export.containers.target import TargetFile
from vhdtool.export.gentle.throttle import Pace
from vhdtool.export.gentle.watch import SourceWatch
from vhdtool.export.moving.copy import Moved, Mover, estimated_data
from vhdtool.export.moving.fill import DamageSink
from vhdtool.export.moving.holes import without_holes
from vhdtool.export.moving.pipeline import Consumer
from vhdtool.export.moving.progress import CancelToken, ProgressCallback, Reporter
from vhdtool.export.options import ExportOptions, ExportReport
from vhdtool.export.output import Output, Place, fingerprints
from vhdtool.export.proof.digest import ChunkSink, WholeDigest
from vhdtool.export.proof.manifest import ChunkRecord, DamageRecord, write_manifest
from vhdtool.export.resume import NotedChunks, NotedDamage, Notes, Trusted
from vhdtool.model.plan import ReadPlan
from vhdtool.model.state import ZEROS, Run
from vhdtool.source import ByteSource, FileSource, files_of

if TYPE_CHECKING:
    from vhdtool.chain.chain import Layer
    from vhdtool.export.containers.clone import Clone
    from vhdtool.export.increment import Base
    from vhdtool.export.proof.seal import Signer


@dataclass(frozen=True, slots=True, eq=False)
class Content:
    """What one export moves.

    Attributes:
        chain: whose disk it is.
        sources: the bytes of what plans call layers.
        plans: makes plans that tile the disk; ``UNHELD`` is left to a parent.
        inputs: files that are read.
        base: what the manifest says of the parent, given the folder that it stands in; None for a full image.
        estimate: bytes of data, when that is known.
        notes: what the user should hear.
        clone: what the image begins as; what is ``UNHELD`` stays as it is there.
    """

    chain: Chain
    sources: Sequence[ByteSource]
    plans: Callable[[], Iterable[ReadPlan]]
    inputs: Sequence[FileSource]
    base: Callable[[Path], Mapping[str, Any]] | None = None
    estimate: int | None = None
    notes: tuple[str, ...] = ()
    clone: Clone | None = None


def full_content(chain: Chain, work: Work) -> Content:
    """All of the disk of ``chain``.

    Raises:
        FormatError, ChainError: it is not sound.
    """
    options = work.options
    allow_damaged = options.damaged == "zero"
    chain.require_sound(allow_damaged=allow_damaged)
    return Content(
        chain,
        [work.pace.source(image.source) for image in chain.images],
        lambda: chain.windows(allow_damaged=allow_damaged, engine=options.engine),
        chain.files(),
        # A digest of the whole disk has to go through the zeros too: then what counts is the position.
        estimate=None if options.hashes else estimated_data(chain),
    )


def increment_content(chain: Chain, base: Base, work: Work) -> Content:
    """What of the disk of ``chain`` is not the base's."""
    options = work.options
    chain.require_sound()
    sources = [work.pace.source(image.source) for image in chain.images]
    base_sources = [work.pace.source(image.source) for image in base.disk.images]
    notes: tuple[str, ...] = ()
    if base.differences == "content" and not options.compare_content:
        notes = ("what the base was made of is not there as it was: the contents were compared",)
    return Content(
        chain,
        sources,
        lambda: base.plans(
            chain, compare_content=options.compare_content, sources=(sources, base_sources), check=work.check
        ),
        [*chain.files(), *base.files()],
        base=lambda folder: base.record(folder, compare_content=options.compare_content),
        notes=notes,
    )


class Work:
    """What the exports of one job share: how gently they read, what they watch, who is told.

    Attributes:
        options: of the job; format, base and the like belong to each export.
        pace: a context, for the time of the job.
    """

    def __init__(
        self,
        options: ExportOptions,
        watch: SourceWatch,
        progress: ProgressCallback | None = None,
        cancel: CancelToken | None = None,
    ) -> None:
        self.options = options
        self.watch = watch
        self._progress = progress
        self._cancel = cancel
        self.pace = Pace(options.limits, check=self.check)
        self._reporter = Reporter("copy", 0, cancel=cancel, tick=watch.tick)
        self.signer: Signer | None = None
        if options.sign is not None:
            from vhdtool.export.proof.seal import load_signer

            self.signer = load_signer(options.sign)

    def check(self) -> None:
        """Raise when the job is to stop, or an input changed."""
        self._reporter.check()

    def reporter(self, phase: str, size: int, estimate: int | None = None) -> Reporter:
        """For the next part of the job."""
        self._reporter = Reporter(
            phase,
            size,
            estimate=None if self._progress is None else estimate,
            progress=self._progress,
            cancel=self._cancel,
            tick=self.watch.tick,
            slowed=lambda: self.pace.slowed,
        )
        return self._reporter

    def export(
        self, content: Content, target: str, shape: Shape, *, manifest: Path | Literal[False] | None = None
    ) -> ExportReport:
        """Make one image of ``content`` and publish it.

        Raises:
            As :func:`export_image`.
        """
        options = self.options
        place = Place(
            target,
            manifest=options.manifest if manifest is None else manifest,
            force=options.force,
            sync=options.sync,
            # What a clone shares with the file that it was cloned from is in no journal.
            resume=options.resume and content.clone is None,
            drop_cache=options.limits.drop_cache,
            level=options.level,
            case=options.case,
            sums=tuple(dict.fromkeys(options.hashes)),
        )
        with ExitStack() as stack:
            output = stack.enter_context(
                Output(
                    place,
                    shape,
                    inputs=[file.path for file in content.inputs],
                    job={
                        **options.job_document(),
                        "log": any(image.log.replayed for image in content.chain.images),
                        "vhdtool": __version__,
                    },
                    layers=fingerprints(content.inputs, self.watch),
                    check=self.check,
                )
            )
            size = output.shape.virtual_size
            chunks = stack.enter_context(closing(ChunkRecord(size, output.folder)))
            damage = stack.enter_context(closing(DamageRecord(output.folder)))
            return _Export(self, content, output, chunks, damage).run()


class _Export:
    """One image on its way."""

    def __init__(
        self, work: Work, content: Content, output: Output, chunks: ChunkRecord, damage: DamageRecord
    ) -> None:
        self._work = work
        self._options = work.options
        self._content = content
        self._output = output
        self._chunks = chunks
        self._damage = damage
        self._size = output.shape.virtual_size
        self._whole: list[WholeDigest] = []
        self._resumed_at = 0
        self._before = Moved()

    def run(self) -> ExportReport:
        output = self._output
        container = self._begin()
        moved = self._move(container)
        self._chunks.finish()
        self._damage.finish()
        if self._content.base is not None and self._options.hashes:
            self._digest_disk()
        self._work.watch.check()
        file_size = output.finish(container.finish())
        digests = {digest.name: digest.hexdigest() for digest in self._whole}
        output.require_digests(digests)
        output.write_sums(digests, self._work.reporter)
        report = self._report(moved, file_size)
        if output.manifest is not None:
            self._write_manifest(output.manifest, report)
        output.publish()
        return report

    def _begin(self) -> Container:
        """The container, as an interrupted job left it or empty, and the digests that go with it."""
        output = self._output
        if not output.is_resumed:
            self._whole = self._new_digests()
            container = self._new_container()
        else:
            assert output.journal is not None
            trusted = Trusted(
                output.journal,
                output.new_container,
                self._new_digests,
                lambda size: self._work.reporter("resume", size, size),
            )
            self._whole, container = trusted.digests, trusted.container
            self._resumed_at, self._before = trusted.position, trusted.moved
            for checkpoint in output.journal.checkpoints():
                for count, digest in checkpoint.chunks:
                    self._chunks.add(digest, count)
                for start, length, reason in checkpoint.damaged:
                    self._damage.add(start, length, reason)
            output.cut(trusted.file_size)
        output.reserve()
        return container

    def _new_container(self) -> Container:
        clone, target = self._content.clone, self._output.target
        if clone is None:
            return self._output.new_container()
        assert isinstance(target, TargetFile)
        return clone.container(target, self._size, self._work.check)

    def _new_digests(self) -> list[WholeDigest]:
        # An increment holds a part of the disk; what is digested of the whole is read for it afterwards.
        names = () if self._content.base is not None else self._options.hashes
        return [WholeDigest(name) for name in dict.fromkeys((*names, *self._output.digests_wanted))]

    def _move(self, container: Container) -> Moved:
        """Move the disk into ``container``, from where it stands on."""
        options, output = self._options, self._output
        start = self._resumed_at
        clone = self._content.clone
        consumers: list[Consumer] = [*self._whole] if clone is None else [*map(clone.filled, self._whole)]
        damage: DamageSink = self._damage
        notes = None
        chunks: ChunkSink | None = self._chunks
        if output.manifest is None:
            chunks = None
        elif clone is not None:
            consumers.insert(0, clone.chunk_digester(self._chunks, self._size))
            chunks = None
        elif output.journal is not None:
            chunks, damage = noted = NotedChunks(self._chunks), NotedDamage(self._damage)
            seconds = options.checkpoint_seconds
            notes = Notes(output.journal, container, *noted, seconds, before=self._before)
        mover = Mover(
            self._content.sources,
            container,
            chunks=chunks,
            consumers=consumers,
            reporter=self._work.reporter("copy", self._size, self._content.estimate),
            damaged=options.damaged,
            damage=damage,
            zero_detect=options.zero_detect,
            engine=options.engine,
            checkpoints=notes,
        )
        moved = mover.run(
            _from(
                start,
                self._content.plans(),
                self._content.chain.virtual_size,
                self._size,
                self._content.sources,
            ),
            start,
        )
        return Moved(self._before.read + moved.read, self._before.written + moved.written)

    def _digest_disk(self) -> None:
        """Digest the whole disk of an increment, which holds a part of it only."""
        chain = self._content.chain
        self._whole = [WholeDigest(name) for name in dict.fromkeys(self._options.hashes)]
        sources = [self._work.pace.source(image.source) for image in chain.images]
        reporter = self._work.reporter("digest", chain.virtual_size)
        mover = Mover(sources, None, consumers=self._whole, reporter=reporter)
        mover.run(_from(0, chain.windows(), chain.virtual_size, self._size, sources))

    # ------------------------------------------------------------ what is told

    def _digests(self) -> dict[str, str]:
        wanted = dict.fromkeys(self._options.hashes)
        return {digest.name: digest.hexdigest() for digest in self._whole if digest.name in wanted}

    def _report(self, moved: Moved, file_size: int) -> ExportReport:
        output, content, chunks, damage = self._output, self._content, self._chunks, self._damage
        manifest = output.manifest
        base = None
        if content.base is not None and manifest is not None:
            base = content.base(manifest.path.parent)
        return ExportReport(
            target=output.name,
            format=str(output.shape.format),
            subformat=str(output.shape.type),
            virtual_size=self._size,
            file_size=file_size,
            data_bytes=chunks.data_bytes,
            read_bytes=moved.read,
            written_bytes=moved.written,
            root=None if manifest is None else chunks.root(),
            digests=self._digests(),
            manifest=None if manifest is None else Path(manifest.name),
            sums=tuple(Path(file.name) for file in output.sums.values()),
            damaged=tuple(damage.kept),
            damaged_count=damage.count,
            damaged_bytes=damage.bytes,
            resumed_at=self._resumed_at,
            base=base,
            notes=(*content.notes, *self._work.pace.notes),
            findings=content.chain.all_findings(),
            started=output.started,
            finished=datetime.now(UTC),
        )

    def _write_manifest(self, manifest: TargetFile, report: ExportReport) -> None:
        chain = self._content.chain
        head = {
            "vhdtool_version": __version__,
            "started": utc_text(report.started),
            "finished": utc_text(report.finished),
            **({"case": dict(self._options.case)} if self._options.case else {}),
            "target": {
                "path": report.target,
                **self._output.shape.facts(),
                "file_size": report.file_size,
                "structure": self._output.structure(),
            },
            "point_in_time": str(chain.layers[0].path),
            "log_replayed": any(image.log.replayed for image in chain.images),
            "base": report.base,
        }
        tail = {
            "layers": [layer_record(layer) for layer in chain.layers],
            "findings": [finding.document() for finding in chain.findings],
        }
        try:
            write_manifest(
                manifest,
                head=head,
                chunks=self._chunks,
                digests=report.digests,
                tail=tail,
                damaged=self._damage,
                signer=self._work.signer,
            )
        except OSError as error:  # of a temporary list; the target's own are ours already
            raise ExportError(f"cannot write {printable(manifest.name)}: {error.strerror}") from error


def _from(
    start: int, plans: Iterable[ReadPlan], size: int, stop: int, sources: Sequence[ByteSource]
) -> Iterator[ReadPlan]:
    """Plans of a disk of ``size`` bytes from guest byte ``start`` on, and zeros behind it up to ``stop``."""
    for plan in plans:
        if plan.stop > start:
            yield from [plan] if plan.start >= start else _behind(start, plan, sources)
    first = max(start, size)
    if first < stop:
        yield ReadPlan.of_runs([Run(first, stop - first, ZEROS, -1)])


def _behind(start: int, plan: ReadPlan, sources: Sequence[ByteSource]) -> Iterator[ReadPlan]:
    """What of ``plan`` comes from guest byte ``start`` on.

    Long runs are looked into for holes, short ones are not.  So the run that is cut is looked into before:
    what is moved is what a job would have moved that nobody interrupted.
    """
    cut = next(run for run in plan if run.offset + run.length > start)
    edge = cut.offset + cut.length
    for part in without_holes(ReadPlan.of_runs([cut]), sources):
        if part.stop > start:
            yield part.clipped(start, edge)
    yield plan.clipped(edge, plan.stop)


def layer_record(layer: Layer) -> dict[str, Any]:
    """What a manifest says of a layer."""
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
