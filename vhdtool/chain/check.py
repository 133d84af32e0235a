"""Checks: every finding about images, chains or whole folders, collected and never raised.

One file is open at a time, so thousands of them cost no more descriptors or memory than their findings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vhdtool.errors import Finding, InputError, Location, Severity, VhdtoolError
from vhdtool.formats.image import DiskImage, OpenOptions
from vhdtool.formats.registry import open_image

if TYPE_CHECKING:
    from vhdtool.chain.paths import PathMap


@dataclass(frozen=True, slots=True)
class CheckOptions:
    """How to check.

    Attributes:
        chain: follow each image's parents and judge the links too; without it no parent is looked for.
        deep: read payload where its presence or absence can be a fault.
        search, maps, log, ignore_checksums, allow_mismatch: as for ``open_chain``.
    """

    chain: bool = False
    deep: bool = False
    search: tuple[Path, ...] = ()
    maps: tuple[PathMap, ...] = ()
    log: Literal["before", "after"] = "after"
    ignore_checksums: bool = False
    allow_mismatch: bool = False

    @property
    def image_options(self) -> OpenOptions:
        """The part that one image asks for."""
        return OpenOptions(log=self.log, ignore_checksums=self.ignore_checksums)


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What was found.

    Attributes:
        images: how many images were looked at.
        findings: in the order of the paths, none twice.
        refused: why given files could not be looked at at all, in the order of the paths; where that has a
            finding, it is among ``findings`` too.
    """

    images: int
    findings: tuple[Finding, ...]
    refused: tuple[VhdtoolError, ...]

    @property
    def errors(self) -> int:
        """How many findings are errors."""
        return self._count(Severity.ERROR)

    @property
    def warnings(self) -> int:
        """How many findings are warnings."""
        return self._count(Severity.WARNING)

    def _count(self, severity: Severity) -> int:
        return sum(finding.severity is severity for finding in self.findings)


def check_paths(paths: Sequence[Path], options: CheckOptions | None = None) -> CheckReport:
    """Look for everything that is wrong with ``paths``: image files, or folders with all images below them.

    Folders are judged as one snapshot tree, links included.  A single image is judged by itself, unless
    ``options.chain`` asks for its parents.  Nothing is raised: what cannot be looked at is ``refused``.
    """
    check = _Check(options or CheckOptions())
    folders = [path for path in paths if _is_folder(path)]
    for path in paths:
        if path not in folders:
            check.file(path)
    if folders:
        check.folders(folders)
    return CheckReport(check.images, tuple(check.findings), tuple(check.refused))


@dataclass(slots=True)
class _Check:
    options: CheckOptions
    images: int = 0
    # A dict keeps the order and drops repeats: a base is looked at once, however many chains lead to it.
    findings: dict[Finding, None] = field(default_factory=dict)
    refused: list[VhdtoolError] = field(default_factory=list)

    def file(self, path: Path) -> None:
        """One file that the user named."""
        try:
            if self.options.chain:
                self._chain(path)
            else:
                self._image(path, raw=True)
        except VhdtoolError as error:
            self.refused.append(error)
            if error.finding is not None:
                self.findings[error.finding] = None

    def folders(self, folders: Sequence[Path]) -> None:
        """All images below ``folders`` and the links between them."""
        from vhdtool.chain.tree import find_snapshots

        options = self.options
        try:
            tree = find_snapshots(
                *folders, maps=options.maps, log=options.log, ignore_checksums=options.ignore_checksums
            )
        except InputError as error:
            self.refused.append(error)
            return
        for node in tree:
            try:
                self._image(node.path, raw=False)
            except VhdtoolError as error:
                self._note(node.path, error)
        self._add(tree.findings)

    def _note(self, path: Path, error: VhdtoolError) -> None:
        """An image below a folder that could be opened a moment ago, and cannot be looked at now."""
        finding = error.finding or Finding(
            "check.unreadable", Severity.ERROR, Location(str(path)), str(error), exit_code=error.exit_code
        )
        self.findings[finding] = None

    def _image(self, path: Path, *, raw: bool) -> None:
        image = open_image(path, self.options.image_options, raw=raw, strict=False)
        try:
            self._inspect(image)
        finally:
            image.close()

    def _chain(self, leaf: Path) -> None:
        from vhdtool.chain.discover import open_chain

        options = self.options
        with open_chain(
            leaf,
            search=options.search,
            maps=options.maps,
            log=options.log,
            ignore_checksums=options.ignore_checksums,
            allow_mismatch=options.allow_mismatch,
            strict=False,
        ) as chain:
            for image in chain.images:
                self._inspect(image)
            self._add(chain.findings)

    def _inspect(self, image: DiskImage) -> None:
        self.images += 1
        try:
            image.survey()
            image.inspect(deep=self.options.deep)
        finally:
            # What was found before the file could not be read any further is worth telling.
            self._add(image.findings)

    def _add(self, findings: Sequence[Finding]) -> None:
        self.findings.update(dict.fromkeys(findings))


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False
