"""Export jobs: a point in time as one new file, with its manifest.

A job is a value: paths and options in, a report out, so that any thread, process or machine can run it.

::

    quiet? ──► chain ──┬── all of its disk ───────────────────┐
                       └── what differs from a base ──────────┴──► work.py ──► image and manifest
                             (increment.py)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vhdtool.chain.chain import Chain
from vhdtool.export.containers.shape import (
    ParentFacts,
    Shape,
    shape_of_child,
    shape_of_export,
)
from vhdtool.export.gentle.watch import Settling, SourceWatch, settle
from vhdtool.export.moving.progress import CancelToken, Progress, ProgressCallback, Reporter
from vhdtool.export.options import ExportOptions, ExportReport
from vhdtool.export.work import Work, full_content, increment_content

if TYPE_CHECKING:
    from vhdtool.chain.paths import PathMap
    from vhdtool.export.increment import Base

AnyPath = str | os.PathLike[str]


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
    options: ExportOptions = field(default_factory=ExportOptions)

    def run(
        self, *, progress: ProgressCallback | None = None, cancel: CancelToken | None = None
    ) -> ExportReport:
        """Do it; errors as ``export_image``."""
        from vhdtool.chain.discover import open_chain

        def opened() -> Chain:
            return open_chain(
                self.leaf,
                search=self.search,
                maps=self.maps,
                log=self.log,
                ignore_checksums=self.ignore_checksums,
                allow_mismatch=self.allow_mismatch,
            )

        with settled(opened, self.options.settle, progress=progress, cancel=cancel) as chain:
            return export_chain(
                chain,
                self.target,
                self.options,
                search=self.search,
                maps=self.maps,
                ignore_checksums=self.ignore_checksums,
                allow_mismatch=self.allow_mismatch,
                progress=progress,
                cancel=cancel,
            )


def export_image(
    chain: Chain | AnyPath,
    target: AnyPath,
    options: ExportOptions | None = None,
    *,
    progress: ProgressCallback | None = None,
    cancel: CancelToken | None = None,
    **wanted: Any,
) -> ExportReport:
    """Export the disk of ``chain`` as one new file; nothing appears under its name before it is whole.

    Args:
        chain: an open chain, or a leaf (whose parents are found by its own words; :class:`ExportJob` has
            the options for more).
        target: a path; ``-`` is standard output.
        options: how; see :class:`ExportOptions`.
        progress: called a few times a second, from this thread.
        cancel: its ``cancel()`` stops the job.
        **wanted: fields of :class:`ExportOptions`, in place of those of ``options``.

    Raises:
        FormatError, ChainError, InputError: the chain, or the base, is not sound or cannot be read.
        TargetExistsError, TargetError: the target (or the manifest) is there already or cannot be made, or
            its format cannot hold the disk.
        SourceChangedError: an input was written to meanwhile.
        ExportError: the target cannot be written.
        CancelledError: stopped through ``cancel``.
        MissingPackageError: a format, a digest or a signature needs a package that is not installed.
        TypeError, ValueError: an unknown option, or options that exclude each other.
    """
    for path in ("manifest", "base", "sign"):
        if wanted.get(path) not in (None, False):
            wanted[path] = Path(wanted[path])
    if "hashes" in wanted:
        wanted["hashes"] = tuple(wanted["hashes"])
    options = replace(options or ExportOptions(), **wanted)
    name = os.fspath(target)
    if isinstance(chain, Chain):
        return export_chain(chain, name, options, progress=progress, cancel=cancel)
    return ExportJob(Path(chain), name, options=options).run(progress=progress, cancel=cancel)


def export_chain(
    chain: Chain,
    target: str,
    options: ExportOptions,
    *,
    search: Sequence[AnyPath] = (),
    maps: Sequence[PathMap | str] = (),
    ignore_checksums: bool = False,
    allow_mismatch: bool = False,
    progress: ProgressCallback | None = None,
    cancel: CancelToken | None = None,
) -> ExportReport:
    """As :func:`export_image`, of an open chain.

    Args:
        search, maps, ignore_checksums, allow_mismatch: how the base is opened, see ``open_chain``.
    """
    options.check()
    with ExitStack() as stack:
        base = None
        if options.base is not None:
            from vhdtool.export.increment import open_base

            base = stack.enter_context(
                open_base(
                    options.base,
                    leaf=chain,
                    search=search,
                    maps=maps,
                    ignore_checksums=ignore_checksums,
                    allow_mismatch=allow_mismatch,
                )
            )
        shape = wanted_shape(chain, target, options, base)
        watch = SourceWatch([*chain.files(), *(base.files() if base is not None else ())])
        work = Work(options, watch, progress, cancel)
        with work.pace, watch.guarding():
            content = full_content(chain, work) if base is None else increment_content(chain, base, work)
            return work.export(content, target, shape)


def wanted_shape(chain: Chain, target: str, options: ExportOptions, base: Base | None) -> Shape:
    """What the export of ``chain`` is to be.

    Raises:
        TargetError: a format cannot do what was asked.
    """
    if base is None:
        return shape_of_export(
            target,
            chain.leaf,
            format=options.format,
            subformat=options.subformat,
            block_size=options.block_size,
            logical_sector_size=options.logical_sector_size,
            keep_id=options.keep_id,
            azure=options.azure,
        )
    base.require_fit(chain, target)
    return shape_of_child(
        target,
        ParentFacts.of_image(base.image),
        format=options.format,
        virtual_size=chain.virtual_size,
        block_size=options.block_size,
        sector_size=options.logical_sector_size,
        keep_id_of=chain.leaf if options.keep_id else None,
    )


@contextmanager
def settled(
    opened: Callable[[], Chain],
    seconds: float,
    *,
    progress: ProgressCallback | None = None,
    cancel: CancelToken | None = None,
) -> Iterator[Chain]:
    """A chain whose files have been seen to be quiet for ``seconds``; closed behind the context.

    Raises:
        CancelledError: stopped through ``cancel``.
        VhdtoolError: what ``opened`` raises.
    """

    def tell(state: Settling) -> None:
        if progress is not None:
            progress(Progress("settle", 0, None, 0, 0, str(state)))

    check = Reporter("settle", 0, cancel=cancel).check
    while True:
        with opened() as chain:
            if seconds <= 0 or not settle(chain.files(), seconds, progress=tell, check=check).reopen:
                yield chain
                return
