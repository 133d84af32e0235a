"""Where an export goes: temporary files of image and manifest, and a journal; kept or removed together.

::

    begin ──► journal ──► temporary files ──► ... ──► publish: image, then manifest ──► journal removed
                 ▲                             │
                 └── the same job, again ◄─────┴── stopped, no room, a lost disk: image and journal are kept
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Protocol, Self

from vhdtool.errors import (
    ExportError,
    ReadError,
    SourceChangedError,
    SourceGoneError,
    TargetError,
    TargetExistsError,
    VhdtoolError,
    printable,
)
from vhdtool.export.containers.container import Container, RawContainer, container_for, file_size_known
from vhdtool.export.containers.shape import Shape, TargetFormat, shape_of_document
from vhdtool.export.containers.target import (
    StdoutTarget,
    TargetFile,
    mode_like,
    new_token,
    remove_leftover,
    require_usable,
    take_back,
)
from vhdtool.export.gentle.watch import SourceWatch
from vhdtool.export.journal import Journal
from vhdtool.export.moving.progress import Reporter
from vhdtool.export.proof.digest import WHOLE_ALGORITHMS
from vhdtool.export.proof.manifest import manifest_path
from vhdtool.export.proof.sums import file_digests, sums_path, write_sums
from vhdtool.formats.registry import open_image
from vhdtool.model.identity import DiskType
from vhdtool.source import FileSource

if TYPE_CHECKING:
    from vhdtool.export.containers.ewf import EwfTarget

STDOUT: Final = "-"
# What an image of the same job may differ in: a job that goes on takes over what was chosen before.
_CHOSEN: Final = ("disk_id", "write_id", "created")


class Target(Protocol):
    """Where an image's bytes go: a file, standard output, or another program."""

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        """Bytes of the image, in ascending order unless it is a file."""
        ...

    def finish(self, size: int) -> None:
        """That was all; the image has so many bytes."""
        ...

    def publish(self) -> None:
        """Give it its name."""
        ...


@dataclass(frozen=True, slots=True)
class Place:
    """Where an image and its manifest are to be.

    Attributes:
        target: a path, or ``-``.
        manifest: None is beside the target, and none for a stream; False is none.
        force: replace what stands there.
        sync: wait for the disk.
        resume: go on with what an interrupted job left.
        drop_cache: let the page cache forget what is written.
        level: of compression.
        case: for E01.
        sums: names of digests; a file for each, as ``sha256sum`` writes it, beside an image that is one file.
    """

    target: str
    manifest: Path | bool | None = None
    force: bool = False
    sync: bool = True
    resume: bool = False
    drop_cache: bool = False
    level: int = 3
    case: Mapping[str, str] | None = None
    sums: tuple[str, ...] = ()


class Output:
    """The files of one job, as a context; what is published in it stays.

    Args:
        shape: what the image is to be; a job that goes on keeps the identities that it has.
        inputs: files that must not be among them.
        job: what else decides about the image's bytes, as JSON.
        layers: what the files are that it is made of, as JSON: they must be the same to go on.
        check: called while zeros are written to a stream; may raise.

    Attributes:
        shape: as it is made.
        started: UTC, when the job began first.
        is_resumed: whether there is something in the journal to go on with.
        target, container: container is made anew by ``new_container``.
        manifest: None when there is none.
        sums: for each digest the file that is to hold it.
        folder: where there is room beside the result.

    Raises:
        TargetExistsError, TargetError: something is there already, or cannot be made.
        SourceChangedError: the layers are not those of the interrupted job.
        ExportError: no room.
    """

    def __init__(
        self,
        place: Place,
        shape: Shape,
        *,
        inputs: Sequence[Path],
        job: Mapping[str, Any],
        layers: Sequence[Mapping[str, Any]],
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.shape = shape
        self.started = datetime.now(UTC)
        self.is_resumed = False
        self.journal: Journal | None = None
        self.manifest: TargetFile | None = None
        self.sums: dict[str, TargetFile] = {}
        self._place = place
        self._inputs = list(inputs)
        self._mode = mode_like(inputs)
        self._token = new_token()
        self._check = check
        self._image: TargetFile | None = None
        self._e01: EwfTarget | None = None
        self._stack = ExitStack()
        try:
            self.target = self._open(job, layers)
        except BaseException:
            self._end(keep=self.is_resumed)
            raise

    @property
    def folder(self) -> Path:
        """Where lists that are too long for memory can grow: beside the results there is room."""
        for file in (self.target, self.manifest):
            if isinstance(file, TargetFile):
                return file.path.parent
        import tempfile

        return Path(tempfile.gettempdir())

    def new_container(self) -> Container:
        """The target's container, empty."""
        if self.shape.format is TargetFormat.RAW_ZST:
            from vhdtool.export.containers.zstd import ZstdContainer

            container = ZstdContainer(
                self.target,
                self.shape.virtual_size,
                folder=self.folder,
                level=self._place.level,
                record=self.journal is not None,
            )
            self._stack.callback(container.close)
            return container
        if self.shape.format is TargetFormat.E01:
            return RawContainer(self.target, self.shape.virtual_size)
        return container_for(self.shape, self.target, record=self.journal is not None)

    def reserve(self) -> None:
        """Give the file its size where that is known: what a file system cannot hold is found out early."""
        size = file_size_known(self.shape)
        if size is not None and isinstance(self.target, TargetFile):
            self.target.set_size(size)

    def cut(self, size: int) -> None:
        """Forget what an interrupted job wrote behind byte ``size``."""
        assert isinstance(self.target, TargetFile)
        self.target.set_size(size)

    def structure(self) -> str | None:
        """A digest of what the finished file holds besides guest data; None where that is nothing."""
        is_packed = self.shape.format is TargetFormat.RAW_ZST
        if not (is_packed or self.shape.format.has_structures) or not isinstance(self.target, TargetFile):
            return None
        from vhdtool.export.proof.structure import structure_digest

        with ExitStack() as stack:
            file = stack.enter_context(FileSource(self.target.partial))
            # Of a packed disk no byte stands in the file as the guest sees it.
            image = None if is_packed else stack.enter_context(closing(open_image(self.target.partial)))
            return structure_digest(image, file, check=self._check)

    @property
    def digests_wanted(self) -> tuple[str, ...]:
        """Names of digests of the whole disk that ``require_digests`` compares."""
        return ("md5",) if self.shape.format is TargetFormat.E01 else ()

    def require_digests(self, digests: Mapping[str, str]) -> None:
        """Refuse the finished file when who wrote it digested something else than what it was given.

        Args:
            digests: of the whole disk, by name.

        Raises:
            ExportError: it did.
        """
        if self._e01 is not None:
            self._e01.require_digests(digests)

    def write_sums(self, digests: Mapping[str, str], reporter: Callable[[str, int], Reporter]) -> None:
        """Write the files of sums for the finished image.

        Args:
            digests: of the disk, by name; of another file than a raw one they are not those of the file.

        Raises:
            ExportError: one cannot be written.
        """
        if not self.sums:
            return
        assert isinstance(self.target, TargetFile)
        if self.shape.format is not TargetFormat.RAW:
            with FileSource(self.target.partial) as file:
                digests = file_digests(file, self.sums, reporter("digest", file.size))
        for name, sink in self.sums.items():
            write_sums(sink, self.target.path, digests[name])

    def finish(self, size: int) -> int:
        """The image is complete and has ``size`` bytes before it is packed; the bytes of its files."""
        self.target.finish(size)
        return size if self._e01 is None else self._e01.size

    @property
    def name(self) -> str:
        """The target as it was given; an E01's first segment, whose name may have got a suffix."""
        return self._place.target if self._e01 is None else str(self._e01.path)

    def publish(self) -> None:
        """Give image and manifest, both finished, their names."""
        beside = [*self.sums.values(), *([] if self.manifest is None else [self.manifest])]
        if self._place.force:
            # At no moment may an old manifest stand beside a new image.
            for file in beside:
                file.remove_old()
        if self.journal is not None:
            # Who comes after a kill knows by that which of them are of this job.
            self.journal.note(beside={os.path.realpath(file.path): file.inode for file in beside})
        self.target.publish()
        for file in beside:
            file.publish()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        begun = self.journal is not None and bool(self.journal.positions)
        self._end(keep=error is not None and begun and _can_go_on(error))

    def _end(self, *, keep: bool) -> None:
        """Let go of everything; ``keep`` what a job can go on with, else nothing that was not published."""
        with self._stack:
            if keep and self._image is not None:
                self._image.keep()
            if not keep and self.journal is not None:
                # Its own temporary file goes first: who finds a journal finds what it tells of.
                if self._image is not None:
                    self._image.abort()
                self.journal.remove()

    def _open(self, job: Mapping[str, Any], layers: Sequence[Mapping[str, Any]]) -> Target:
        place = self._place
        if place.target == STDOUT:
            _require_stream(self.shape)
            target: Target = self._stack.enter_context(StdoutTarget(inputs=self._inputs, check=self._check))
        elif self.shape.format is TargetFormat.E01:
            target = self._open_e01()
        else:
            target = self._open_file(job, layers)
        name = place.manifest
        if name is None and place.target != STDOUT:
            name = self._manifest_name
        if isinstance(target, TargetFile):
            for digest in place.sums:
                self.sums[digest] = self._beside(sums_path(target.path, digest))
        if isinstance(name, Path):
            self.manifest = self._beside(name)
            if isinstance(target, TargetFile) and _name_key(target.path) == _name_key(self.manifest.path):
                raise TargetError(f"{printable(place.target)} cannot be both the image and its manifest")
        return target

    def _open_file(self, job: Mapping[str, Any], layers: Sequence[Mapping[str, Any]]) -> TargetFile:
        place = self._place
        if place.manifest is False:
            # Nothing is digested then, so nothing that is there could be trusted.
            return self._target_file(place.target)
        path = Path(os.path.realpath(place.target))
        if not place.resume:
            # What is refused in the end is refused before anything of an interrupted job is thrown away.
            require_usable(place.target, force=place.force, inputs=self._inputs)
        self.journal = journal = Journal(path)
        self._stack.callback(journal.close)
        begun = journal.job
        if begun is not None and place.resume and journal.positions:
            try:
                self._take_over(begun, job, layers)
                self._take_back(path, begun)
            except VhdtoolError:
                self.journal = None  # it stays as it is, for the job that it is of
                raise
        if self.is_resumed:
            self._image = self._target_file(place.target, reopen=True)
            return self._image
        if begun is not None:
            self._remove_leftovers(path, begun)
        self._token = new_token()
        header = {
            "token": self._token,
            "started": self.started.isoformat(),
            "shape": self.shape.document(),
            "job": dict(job),
            "layers": [dict(layer) for layer in layers],
            "manifest": os.path.realpath(self._manifest_name),
        }
        # First of all: so that whoever comes after a kill knows what was left.
        journal.begin(header)
        self._image = self._target_file(place.target)
        journal.note(file=self._image.inode)
        return self._image

    def _beside(self, name: Path) -> TargetFile:
        """A file that goes with the image."""
        if self.is_resumed:
            remove_leftover(name, self._token)
        return self._target_file(name)

    def _target_file(self, name: str | Path, *, reopen: bool = False) -> TargetFile:
        place = self._place
        return self._stack.enter_context(
            TargetFile(
                name,
                force=place.force,
                inputs=self._inputs,
                mode=self._mode,
                sync=place.sync,
                token=self._token,
                reopen=reopen,
                drop_cache=place.drop_cache,
            )
        )

    def _open_e01(self) -> Target:
        from vhdtool.export.containers.ewf import EwfTarget

        place = self._place
        self._e01 = self._stack.enter_context(
            EwfTarget(
                place.target,
                size=self.shape.virtual_size,
                sector_size=self.shape.sector_size,
                case=place.case,
                force=place.force,
                inputs=self._inputs,
                mode=self._mode,
                sync=place.sync,
                check=self._check,
            )
        )
        return self._e01

    def _take_over(
        self, begun: Mapping[str, Any], job: Mapping[str, Any], layers: Sequence[Mapping[str, Any]]
    ) -> None:
        """Go on with the job that ``begun`` tells of.

        Raises:
            TargetError: it was another one.
            SourceChangedError: its layers are not what they were.
        """
        try:
            shape = shape_of_document(self._place.target, begun["shape"])
            started = datetime.fromisoformat(begun["started"])
            token = str(begun["token"])
            differing = [name for name, value in job.items() if begun["job"].get(name) != value]
            same_layers = [dict(layer) for layer in layers] == begun["layers"]
            changed = () if same_layers else _changed(layers, begun["layers"])
            if begun["manifest"] != os.path.realpath(self._manifest_name):
                differing.append("manifest")
            if begun["layers"][0]["path"] != layers[0]["path"]:
                differing.append("leaf")
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise TargetError(
                f"{self._cannot_go_on()}: its journal is broken ({printable(str(error))})"
            ) from error
        wanted, made = (
            {k: v for k, v in s.document().items() if k not in _CHOSEN} for s in (self.shape, shape)
        )
        differing += [name for name, value in wanted.items() if made[name] != value]
        if differing:
            raise TargetError(
                f"{self._cannot_go_on()}: it was begun with another {', another '.join(sorted(differing))};"
                " without --resume it begins anew"
            )
        if not same_layers:
            raise SourceChangedError(
                f"{self._cannot_go_on()}: {', '.join(changed)} changed since it was begun;"
                " without --resume it begins anew"
            )
        self.shape, self.started, self._token = shape, started, token

    def _take_back(self, path: Path, begun: Mapping[str, Any]) -> None:
        """Have the temporary file of the job that ``begun`` tells of again, if it is there."""
        noted = begun.get("beside")
        inodes = noted if isinstance(noted, dict) else {}
        names = [self._manifest_name, *(sums_path(path, name) for name in self._place.sums)]
        beside = {name: inodes.get(os.path.realpath(name)) for name in names}
        self.is_resumed = take_back(path, self._token, begun.get("file"), beside)

    @property
    def _manifest_name(self) -> Path:
        """Where the manifest goes when there is one."""
        given = self._place.manifest
        return given if isinstance(given, Path) else manifest_path(Path(self.name))

    def _cannot_go_on(self) -> str:
        return f"cannot go on with the export to {printable(self._place.target)}"

    def _remove_leftovers(self, path: Path, begun: Mapping[str, Any]) -> None:
        for file in (path, self._manifest_name, *(sums_path(path, name) for name in WHOLE_ALGORITHMS)):
            remove_leftover(file, str(begun.get("token")))


def _changed(now: Sequence[Mapping[str, Any]], then: Sequence[Mapping[str, Any]]) -> list[str]:
    """Which files are not what they were, for people."""
    before = {layer["path"]: layer for layer in then}
    names = [str(layer["path"]) for layer in now if before.get(layer["path"]) != layer]
    return [printable(name) for name in names] or ["the chain"]


def _can_go_on(error: BaseException) -> bool:
    """Whether what stopped a job leaves something that is worth going on with."""
    # What is gone with its file system may come back as it was; what stands in the way may be removed.
    if isinstance(error, (SourceGoneError, TargetExistsError)):
        return True
    if isinstance(error, (SourceChangedError, TargetError)):
        return False
    # Stopped by the user is no Exception.
    return isinstance(error, (ExportError, ReadError)) or not isinstance(error, VhdtoolError)


def _require_stream(shape: Shape) -> None:
    """Refuse what is not written from its beginning to its end.

    Raises:
        TargetError: tables stand in front of what they are about, or another program writes it.
    """
    is_in_order = shape.format in (TargetFormat.RAW, TargetFormat.RAW_ZST)
    if not is_in_order and (shape.format, shape.type) != (TargetFormat.VHD, DiskType.FIXED):
        raise TargetError(
            f"a {shape.type} {str(shape.format).upper()} cannot be written to standard output,"
            " which is written in order: raw, raw.zst and a fixed VHD can"
        )


def _name_key(path: Path) -> str:
    return os.path.realpath(path).casefold()


def fingerprints(files: Sequence[FileSource], watch: SourceWatch) -> list[dict[str, Any]]:
    """What ``files`` are, as a journal keeps it: all of it must be the same to go on with a job."""
    return [
        {
            "path": os.path.realpath(file.path),
            "size": file.opened_as.size,
            "mtime_ns": file.opened_as.mtime_ns,
            "structures": (watch.structures(file) or b"").hex(),
        }
        for file in files
    ]
