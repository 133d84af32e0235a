"""Every point in time of a tree in one pass: each source block is read once.

::

    tree ──► points, parents first          layout "increments"             layout "images"
               base ──── all it has ──────► full dynamic image              raw image
               child ─── its own layer ───► differencing image over         clone of its parent's export,
                                            its parent's export             written over where it differs

What an image stores by itself is all that is read of it: what it leaves to its parent, its export leaves to
its parent's export.  A copy (another file with the same identity and the same disk) is exported once.

Each image appears with its manifest when it is whole; the set's manifest (setfile.py) comes last.  When an
input changed, what this run published is removed again; when it is stopped, or the disk is full, that stays,
and a run that is to go on keeps what agrees with its manifest, and with the sources as they are now.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from vhdtool import __version__
from vhdtool.chain.chain import Chain, FoundBy, Layer
from vhdtool.chain.diff import side_by_side
from vhdtool.chain.flatten import resolve
from vhdtool.chain.link import IdentityKey
from vhdtool.chain.tree import SnapshotTree, find_snapshots
from vhdtool.errors import (
    FileMissingError,
    Finding,
    FindingLog,
    FormatError,
    InputError,
    SourceChangedError,
    TargetError,
    TargetExistsError,
    VhdtoolError,
    printable,
)
from vhdtool.export.containers.clone import Clone
from vhdtool.export.containers.shape import ParentFacts, Shape, TargetFormat, shape_of_child, shape_of_export
from vhdtool.export.containers.target import TargetFile, make_folder, mode_like, remove_result, require_usable
from vhdtool.export.gentle.watch import Settling, SourceWatch, settle
from vhdtool.export.increment import base_record, is_as_made, is_made_of
from vhdtool.export.moving.copy import estimated_data
from vhdtool.export.moving.progress import CancelToken, Progress, ProgressCallback, Reporter
from vhdtool.export.options import ExportOptions
from vhdtool.export.proof.compare import Comparer, unequal_pieces
from vhdtool.export.proof.manifest import Manifest, manifest_path
from vhdtool.export.proof.seal import check_sealed
from vhdtool.export.sets.points import Plan, Point, Skipped, plan_points
from vhdtool.export.sets.setfile import LAYOUTS, SET_NAME, SetImage, write_set
from vhdtool.export.work import Content, Work, full_content, utc_text
from vhdtool.formats.image import DiskImage, OpenOptions
from vhdtool.formats.registry import open_image
from vhdtool.model.plan import ReadPlan, merged
from vhdtool.source import FileSource, files_of

if TYPE_CHECKING:
    from vhdtool.chain.paths import PathMap

AnyPath = str | os.PathLike[str]
Layout = Literal["increments", "images"]

_FORMATS: Final = {
    "increments": (TargetFormat.VHD, TargetFormat.VHDX),
    "images": (TargetFormat.RAW,),
}


@dataclass(frozen=True, slots=True)
class PointReport:
    """What became of one point in time.  Sizes are bytes.

    Attributes:
        point_in_time: the image whose disk it is.
        target: the file in the destination; ``parent`` the one that it is made on.
        kept: whether an earlier run had made it.
        read_bytes: taken from the sources.
        written_bytes: written to the target.
        shared_bytes: of storage that it shares with its parent's export.
        damaged_count: ranges exported as zeros because they could not be read.
        duplicates: images with the very same disk.
    """

    point_in_time: Path
    target: str
    parent: str | None
    kept: bool
    virtual_size: int
    file_size: int
    read_bytes: int
    written_bytes: int
    shared_bytes: int
    damaged_count: int
    root: str
    duplicates: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class SetReport:
    """What an export of all points did.  Picklable.

    Attributes:
        destination: the folder; ``manifest`` the set's in it.
        points: in the order in which they were made.
        skipped: images whose disks could not be exported.
        findings: of the tree and of all its images.
        notes: what is worth a word.
        started, finished: UTC.
    """

    destination: Path
    manifest: Path
    layout: str
    points: tuple[PointReport, ...]
    skipped: tuple[Skipped, ...]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]
    started: datetime
    finished: datetime

    @property
    def read_bytes(self) -> int:
        """Taken from the sources."""
        return sum(point.read_bytes for point in self.points)

    @property
    def written_bytes(self) -> int:
        """Written to the targets."""
        return sum(point.written_bytes for point in self.points)

    @property
    def shared_bytes(self) -> int:
        """Of storage that images share with each other."""
        return sum(point.shared_bytes for point in self.points)

    @property
    def exit_code(self) -> int:
        """0, or what exporting the first skipped image by itself would have ended with."""
        return self.skipped[0].exit_code if self.skipped else 0


def export_all(
    folders: Sequence[AnyPath] | AnyPath,
    destination: AnyPath,
    options: ExportOptions | None = None,
    *,
    layout: Layout = "increments",
    maps: Sequence[PathMap | str] = (),
    log: Literal["before", "after"] = "after",
    ignore_checksums: bool = False,
    progress: ProgressCallback | None = None,
    cancel: CancelToken | None = None,
) -> SetReport:
    """Export every point in time of the images below ``folders``.

    Args:
        destination: a folder, made when it is not there; not inside of ``folders``.
        options: how; ``format`` is that of all images (None is that of each tree's root, or raw), ``resume``
            keeps what an earlier run finished.  What names one target or one base does not go here.
        layout: "increments": each root a full dynamic image, each other one a differencing image that holds
            what its own layer holds.  "images": independent raw images.
        maps, log, ignore_checksums: as for ``find_snapshots``.
        progress, cancel: as for one export; progress is told over all of them.

    Raises:
        FileMissingError: there is no image, or a folder is missing.
        FormatError, ChainError: not one of the images can be exported.
        TargetExistsError, TargetError: something stands in the destination already.
        SourceChangedError: an input was written to meanwhile; nothing of this run was left.
        As :func:`~vhdtool.export.job.export_image`: what one export can fail with.
        ValueError: options that do not go with a set.
    """
    options = options or ExportOptions()
    wanted = _checked(options, layout)
    roots = [Path(folder) for folder in _listed(folders)]
    target = Path(destination)
    _require_outside(target, roots)
    check = Reporter("settle", 0, cancel=cancel).check

    def tell(state: Settling) -> None:
        if progress is not None:
            progress(Progress("settle", 0, None, 0, 0, str(state)))

    while True:
        tree = find_snapshots(*roots, maps=maps, log=log, ignore_checksums=ignore_checksums)
        plan = plan_points(tree, roots, wanted)
        _require_some(plan, roots)
        with ExitStack() as stack:
            files = [stack.enter_context(FileSource(path)) for path in _files_of(plan)]
            if options.settle > 0 and settle(files, options.settle, progress=tell, check=check).reopen:
                continue
            watch = _SetWatch(files)
            overall = _Overall(progress, plan.points)
            work = Work(options, watch, None if progress is None else overall.tell, cancel)
            opening = OpenOptions(log, ignore_checksums)
            job = _SetExport(tree, plan, target, layout, work, opening, files, watch, overall)
            make_folder(target)
            with work.pace:
                return job.run(roots)


def _listed(folders: Sequence[AnyPath] | AnyPath) -> Sequence[AnyPath]:
    return (folders,) if isinstance(folders, (str, os.PathLike)) else folders


def _checked(options: ExportOptions, layout: str) -> TargetFormat | None:
    """The format that all images are to have.

    Raises:
        ValueError: options that do not go with a set.
    """
    options.check()
    if layout not in LAYOUTS:
        raise ValueError(f"a layout is one of {', '.join(LAYOUTS)}, not {layout!r}")
    single = [name for name in ("base", "manifest", "subformat") if getattr(options, name) is not None]
    single += [name for name in ("keep_id", "azure", "compare_content") if getattr(options, name)]
    if single:
        raise ValueError(f"{', '.join(single)} cannot be chosen for all points at once")
    if options.format is None:
        return TargetFormat.RAW if layout == "images" else None
    wanted = TargetFormat(options.format)
    if wanted not in _FORMATS[layout]:
        raise ValueError(f"layout {layout!r} has images as {' or '.join(_FORMATS[layout])}, not {wanted}")
    return wanted


def _require_outside(destination: Path, folders: Sequence[Path]) -> None:
    """What is exported must not be found as a source the next time."""
    place = Path(os.path.realpath(destination))
    for folder in folders:
        if place.is_relative_to(os.path.realpath(folder)):
            raise TargetError(
                f"cannot export to {printable(str(destination))}: it lies in {printable(str(folder))},"
                " whose images are exported"
            )


def _require_some(plan: Plan, folders: Sequence[Path]) -> None:
    if plan.points:
        return
    names = ", ".join(printable(str(folder)) for folder in folders)
    if not plan.skipped:
        raise FileMissingError(f"no image below {names}")
    first = plan.skipped[0]
    error = VhdtoolError(f"none of {len(plan.skipped)} images below {names} can be exported: {first.reason}")
    error.exit_code = first.exit_code
    raise error


def _files_of(plan: Plan) -> list[Path]:
    """Every file of every point; an image may have several."""
    found: dict[Path, None] = {}
    for point in plan.points:
        with closing(open_image(point.path, strict=False)) as image:
            found.update(dict.fromkeys(file.path for file in files_of(image.source)))
    return list(found)


class _SetWatch(SourceWatch):
    """Looks at all files thoroughly once, at the end of the set, and not at the end of each image."""

    def check(self) -> None:
        """Look, if that is due."""
        self.tick()

    def check_all(self) -> None:
        """Look at every file, thoroughly."""
        super().check()


class _Overall:
    """Progress over the whole set, made of that of each image."""

    def __init__(self, progress: ProgressCallback | None, points: Sequence[Point]) -> None:
        self._progress = progress
        self._size = sum(point.node.virtual_size for point in points)
        self._position = 0
        self._done = 0
        # A file is about as long as what it holds.
        self._rest = sum(point.node.file_size for point in points)

    def begin(self, point: Point) -> None:
        """``point`` comes now."""
        self._rest -= point.node.file_size

    def end(self, point: Point, read_bytes: int) -> None:
        """It is done."""
        self._position += point.node.virtual_size
        self._done += read_bytes

    def tell(self, state: Progress) -> None:
        """Of one image."""
        if self._progress is not None:
            total = None if state.total is None else self._done + state.total + self._rest
            position = min(self._position + state.position, self._size)
            done = self._done + state.done
            self._progress(replace(state, done=done, total=total, position=position, virtual_size=self._size))


@dataclass(frozen=True, slots=True, eq=False)
class _Made:
    """An export that is there: what its children need of it."""

    point: Point
    report: PointReport
    image: SetImage
    facts: ParentFacts | None


class _SetExport:
    """One set on its way."""

    def __init__(
        self,
        tree: SnapshotTree,
        plan: Plan,
        destination: Path,
        layout: Layout,
        work: Work,
        open_options: OpenOptions,
        files: Sequence[FileSource],
        watch: _SetWatch,
        overall: _Overall,
    ) -> None:
        self._tree = tree
        self._plan = plan
        self._destination = destination
        self._layout = layout
        self._work = work
        self._options = work.options
        self._open_options = open_options
        self._inputs = [file.path for file in files]
        self._watch = watch
        self._overall = overall
        # By the image; a copy's is that of the one that was exported.
        self._made: dict[Path, _Made] = {}
        self._copies: dict[Path, list[Path]] = {}
        self._by_key: dict[IdentityKey, list[_Made]] = {}
        self._published: list[Path] = []
        self._findings = dict.fromkeys(tree.all_findings())
        self._notes: dict[str, None] = {}
        # The way down to the point at hand: an image stays open while its descendants are exported.
        self._way: list[tuple[Path, DiskImage]] = []

    def run(self, folders: Sequence[Path]) -> SetReport:
        """Export all points, then write the set's manifest."""
        started = datetime.now(UTC)
        options = self._options
        again = options.force or options.resume
        path = self._destination / SET_NAME
        if not again:
            for point in self._plan.points:
                for name in (point.name, manifest_path(Path(point.name)).name):
                    self._require_free(self._destination / name)
        with TargetFile(
            path, force=again, inputs=self._inputs, mode=mode_like(self._inputs), sync=options.sync
        ) as target:
            if again:
                # At no moment may an old set tell of new images.
                target.remove_old()
            try:
                self._export_points()
                report = self._report(started, path)
                self._write(target, report, folders)
            except SourceChangedError:
                for result in self._published:
                    remove_result(result)
                raise
            target.publish()
        return report

    def _require_free(self, path: Path) -> None:
        try:
            require_usable(path, force=False, inputs=self._inputs)
        except TargetExistsError as error:
            raise TargetExistsError(f"{error}, --resume keeps what is right of a set") from error

    def _export_points(self) -> None:
        try:
            for point in self._plan.points:
                self._overall.begin(point)
                made = self._export_point(point)
                self._made[point.path] = made
                self._overall.end(point, made.report.read_bytes if made.point is point else 0)
        except (FormatError, InputError):
            # A file that is written to can break any rule while it is read: then that is what is said.
            self._watch.check_all()
            raise
        finally:
            self._leave(0)
        self._watch.check_all()

    def _export_point(self, point: Point) -> _Made:
        """Make the export of ``point``, or find that it is made already."""
        chain = self._chain(point)
        above = None if point.parent is None else self._made[point.parent]
        twin = self._twin(point, chain, above)
        if twin is not None:
            self._copies.setdefault(twin.point.path, []).append(point.path)
            return twin
        path = self._destination / point.name
        with ExitStack() as stack:
            content, shape = self._content(point, chain, above, path, stack)
            base = None if content.base is None else content.base(self._destination)
            report = self._kept(point, chain, path, shape, base) if self._options.resume else None
            if report is None:
                report = self._export(point, content, path, shape)
        parent = None
        if above is not None and (base is not None or content.clone is not None):
            parent = above.point.name
        made = self._finished(point, path, replace(report, parent=parent))
        if point.key is not None:
            self._by_key.setdefault(point.key, []).append(made)
        return made

    def _export(self, point: Point, content: Content, path: Path, shape: Shape) -> PointReport:
        report = self._work.export(content, str(path), shape)
        assert report.root is not None
        self._published += [path, manifest_path(path), *report.sums]
        self._findings.update(dict.fromkeys(report.findings))
        self._notes.update(dict.fromkeys(report.notes))
        made = None if content.clone is None else content.clone.made
        return PointReport(
            point_in_time=point.path,
            target=point.name,
            parent=None,
            kept=False,
            virtual_size=report.virtual_size,
            file_size=report.file_size,
            read_bytes=report.read_bytes,
            written_bytes=report.written_bytes,
            shared_bytes=0 if made is None else made.shared_bytes,
            damaged_count=report.damaged_count,
            root=report.root,
        )

    def _kept(
        self, point: Point, chain: Chain, path: Path, shape: Shape, base: Mapping[str, Any] | None
    ) -> PointReport | None:
        """What an earlier run finished, when that is what this one would make; what is not is removed."""
        try:
            manifest = Manifest(manifest_path(path))
        except (FormatError, InputError):
            return None
        with manifest:
            if manifest.values["point_in_time"] != str(point.path):
                return None
            if self._agrees(manifest, chain, path, shape, base):
                return PointReport(
                    point_in_time=point.path,
                    target=point.name,
                    parent=None,
                    kept=True,
                    virtual_size=shape.virtual_size,
                    file_size=manifest.target["file_size"],
                    read_bytes=0,
                    written_bytes=0,
                    shared_bytes=0,
                    damaged_count=manifest.damaged_count,
                    root=manifest.root,
                )
        # Of the same image, and not what it is to be: a parent was made anew, or a source has changed since.
        remove_result(manifest_path(path))
        remove_result(path)
        return None

    def _agrees(
        self, manifest: Manifest, chain: Chain, path: Path, shape: Shape, base: Mapping[str, Any] | None
    ) -> bool:
        """Whether the image at ``path`` is of ``shape``, on ``base``, and of ``chain`` as that is now."""
        options, target = self._options, manifest.target
        chosen = {"disk_id", "write_id"}  # each image has its own
        wanted = {name: value for name, value in shape.facts().items() if name not in chosen}
        if {name: target[name] for name in wanted} != wanted or manifest.base != base:
            return False
        if manifest.damaged_count and options.damaged != "zero":
            return False
        if not set(options.hashes) <= set(manifest.digests):
            return False
        if self._work.signer is not None and manifest.seal.signer != self._work.signer.public_key:
            return False
        return is_made_of(manifest, chain) and is_as_made(manifest, path)

    # ------------------------------------------------------------ sources

    def _chain(self, point: Point) -> Chain:
        """The chain of ``point``, over images that are open."""
        common = 0
        down = point.chain[::-1]
        while common < min(len(self._way), len(down)) and self._way[common][0] == down[common]:
            common += 1
        self._leave(common)
        for path in down[common:]:
            self._way.append((path, self._opened(path)))
        return Chain([self._layer(path, image) for path, image in reversed(self._way)])

    def _leave(self, depth: int) -> None:
        """Close what is more than ``depth`` images down the way."""
        while len(self._way) > depth:
            self._way.pop()[1].close()

    def _opened(self, path: Path) -> DiskImage:
        """The image at ``path``.

        Raises:
            SourceChangedError: it is not the one that was found there before.
        """
        image = open_image(path, self._open_options)
        if image.write_id != self._tree[path].write_id:
            image.close()
            raise SourceChangedError(f"{printable(str(path))} changed: it has another identity than before")
        return image

    def _layer(self, path: Path, image: DiskImage) -> Layer:
        node = self._tree[path]
        return Layer(image, path, node.found_by or FoundBy.GIVEN, node.link, node.findings)

    def _twin(self, point: Point, chain: Chain, above: _Made | None) -> _Made | None:
        """The export of an image with the very same disk."""
        for other in self._by_key.get(point.key, []) if point.key is not None else []:
            above_other = None if other.point.parent is None else self._made[other.point.parent]
            if above_other is above and other.point.node.virtual_size == chain.virtual_size:
                with closing(self._opened(other.point.path)) as image:
                    # Over the same parents: only what both have of their own is read.
                    theirs = Chain([self._layer(other.point.path, image), *chain.layers[1:]])
                    if _is_same_disk(chain, theirs, self._work):
                        return other
        return None

    # ------------------------------------------------------------ what is made

    def _content(
        self, point: Point, chain: Chain, above: _Made | None, path: Path, stack: ExitStack
    ) -> tuple[Content, Shape]:
        """What is moved for ``point``, and what becomes of it."""
        kind, image = point.format, chain.leaf
        block_size = self._block_size(image, kind)
        if above is None or not self._fits(above, chain):
            full = shape_of_export(
                path,
                image,
                format=kind,
                subformat="dynamic" if kind.has_structures else None,
                block_size=block_size,
                logical_sector_size=self._options.logical_sector_size,
            )
            return full_content(chain, self._work), full
        content = self._own_content(chain)
        if self._layout == "images":
            parent = stack.enter_context(FileSource(self._destination / above.point.name))
            manifest = stack.enter_context(Manifest(self._destination / above.image.manifest))
            clone = Clone(parent, manifest)
            return replace(content, clone=clone), shape_of_export(path, image, format=kind)
        facts, root = above.facts, above.report.root
        assert facts is not None
        child = shape_of_child(
            path, facts, format=kind, virtual_size=chain.virtual_size, block_size=block_size
        )
        below = str(above.point.path)
        return replace(
            content, base=lambda folder: base_record(facts, folder, below, root, "metadata")
        ), child

    def _fits(self, above: _Made, chain: Chain) -> bool:
        """Whether the image can be made on its parent's export; otherwise it is made of all its layers."""
        if self._layout == "increments":
            # No child is smaller than its parent.
            return chain.virtual_size >= above.report.virtual_size
        # What the parent's export has for damage would have to be listed for the child's, too.
        return above.report.damaged_count == 0

    def _own_content(self, chain: Chain) -> Content:
        """What the leaf of ``chain`` stores by itself; the rest is ``UNHELD``."""
        allow_damaged = self._options.damaged == "zero"
        own = Chain(chain.layers[:1])
        own.require_sound(allow_damaged=allow_damaged)
        engine = self._options.engine

        def plans() -> Iterator[ReadPlan]:
            for window in resolve(own.images, 0, own.virtual_size, engine=engine):
                yield merged(window.offset, window.length, window.layer, window.file_offset)

        return Content(
            chain,
            [self._work.pace.source(own.leaf.source)],
            plans,
            own.files(),
            estimate=estimated_data(own),
        )

    def _block_size(self, image: DiskImage, kind: TargetFormat) -> int | None:
        """As asked for, else that of the image, so that each of its blocks becomes one."""
        if self._options.block_size is not None or not kind.has_structures:
            return self._options.block_size
        is_same = image.format.value == kind.value and image.geometry.has_table
        return image.geometry.block_size if is_same else None

    # ------------------------------------------------------------ what is told

    def _finished(self, point: Point, path: Path, report: PointReport) -> _Made:
        """What children and the set need to know of an export that is there."""
        manifest = manifest_path(path)
        with FileSource(manifest) as source:
            seal = check_sealed(source, FindingLog(str(manifest))).digest.hex()
        facts = None
        if point.format.has_structures:
            with closing(open_image(path)) as image:
                facts = ParentFacts.of_image(image)
        entry = SetImage(
            name=point.name,
            parent=report.parent,
            manifest=manifest.name,
            manifest_seal=seal,
            root=report.root,
            point_in_time=str(point.path),
            duplicates=(),
            format=str(point.format),
            virtual_size=report.virtual_size,
            file_size=report.file_size,
            disk_id=None if facts is None else str(facts.disk_id),
            write_id=None if facts is None else str(facts.write_id),
        )
        return _Made(point, report, entry, facts)

    def _all_made(self) -> Iterator[tuple[_Made, tuple[Path, ...]]]:
        """Each export once, and the images that are copies of its own."""
        for path, made in self._made.items():
            if made.point.path == path:
                yield made, tuple(self._copies.get(path, ()))

    def _report(self, started: datetime, manifest: Path) -> SetReport:
        return SetReport(
            destination=self._destination,
            manifest=manifest,
            layout=self._layout,
            points=tuple(replace(made.report, duplicates=copies) for made, copies in self._all_made()),
            skipped=self._plan.skipped,
            findings=tuple(self._findings),
            notes=tuple(self._notes),
            started=started,
            finished=datetime.now(UTC),
        )

    def _write(self, target: TargetFile, report: SetReport, folders: Sequence[Path]) -> None:
        case = self._options.case
        head = {
            "vhdtool_version": __version__,
            "started": utc_text(report.started),
            "finished": utc_text(report.finished),
            **({"case": dict(case)} if case else {}),
            "layout": self._layout,
            "folders": [str(folder) for folder in folders],
        }
        images = [
            replace(made.image, duplicates=tuple(map(str, copies))) for made, copies in self._all_made()
        ]
        write_set(target, head=head, images=images, skipped=self._plan.skipped, signer=self._work.signer)


def _is_same_disk(a: Chain, b: Chain, work: Work) -> bool:
    """Whether two disks of one size are equal; as gently as everything else is read."""
    differences: list[int] = []
    comparer = Comparer(lambda start, length: differences.append(start))
    sources = [[work.pace.source(image.source) for image in chain.images] for chain in (a, b)]
    try:
        for window in side_by_side(a, b):
            for piece in unequal_pieces(window, *sources):
                work.check()
                comparer.add(piece)
                if differences:
                    return False
        comparer.flush()
    except FormatError:  # one of them is damaged: nobody can say
        return False
    return not differences
