"""Which points in time of a tree can be exported, in which order, and under which names.

::

    tree ──► every image ──┬── its way down to a base is whole ──► Point, parents first
                           └── an orphan, broken, or above one ──► Skipped, with the reason

What is known here are headers.  Two files with one identity may be copies of each other; whether they are is
for who can read them.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final

from vhdtool.chain.chain import LinkVerdict
from vhdtool.chain.link import IdentityKey
from vhdtool.chain.paths import component_fault, fold
from vhdtool.chain.tree import SnapshotTree, TreeNode
from vhdtool.errors import EXIT_MISSING, Finding, Severity
from vhdtool.export.containers.shape import TargetFormat, claimed_format
from vhdtool.model.identity import DiskType

# Bytes: room for suffixes in the 255 that file systems give.
_NAME_BYTES_MAX: Final = 200
_BAD_CHARACTERS: Final = str.maketrans(dict.fromkeys('<>:"/\\|?*', "_"))


@dataclass(frozen=True, slots=True)
class Point:
    """A point in time that can be exported.

    Attributes:
        node: the image whose disk it is.
        format: of its export.
        name: of the file in the destination.
        chain: the files that it reads through, itself first.
    """

    node: TreeNode
    format: TargetFormat
    name: str
    chain: tuple[Path, ...]

    @property
    def path(self) -> Path:
        """Of the image."""
        return self.node.path

    @property
    def parent(self) -> Path | None:
        """The image that it was made from."""
        return self.node.parent

    @property
    def key(self) -> IdentityKey | None:
        """What a copy of it has too; None without an identity."""
        identity = self.node.write_id
        return None if identity is None or identity.is_null else (self.node.format, identity.raw)


@dataclass(frozen=True, slots=True)
class Skipped:
    """An image whose disk cannot be exported.

    Attributes:
        reason: why, as a person reads it.
        code: of the finding behind it; empty when there is none.
        exit_code: what exporting it alone would end with.
    """

    path: Path
    reason: str
    code: str
    exit_code: int

    @classmethod
    def because(cls, path: Path, finding: Finding) -> Skipped:
        """Because of ``finding``."""
        return cls(path, str(finding), finding.code, finding.exit_code)


@dataclass(frozen=True, slots=True)
class Plan:
    """What of a tree is exported: ``points`` with each parent in front of its children, and what is not."""

    points: tuple[Point, ...]
    skipped: tuple[Skipped, ...]


def plan_points(tree: SnapshotTree, folders: Sequence[Path], wanted: TargetFormat | None) -> Plan:
    """All points in time of ``tree``.

    Args:
        folders: what the tree was made of.
        wanted: the format of all exports; None takes that of each tree's root.
    """
    sound: list[tuple[TreeNode, TargetFormat]] = []
    # In front: they may be the reason for others.
    skipped = list(_no_images(tree))
    for root in tree.roots:
        kind = wanted or TargetFormat(root.format)
        pending: list[tuple[TreeNode, Skipped | None]] = [(root, None)]
        while pending:
            node, above = pending.pop()
            fault = _fault(node) if above is None else Skipped(node.path, *_blamed(above))
            if fault is None:
                sound.append((node, kind))
            else:
                skipped.append(fault)
            pending.extend((child, fault) for child in reversed(tree.children_of(node.path)))
    names = _names([(node.path, kind) for node, kind in sound], folders)
    points = (Point(node, kind, names[node.path], tree.chain_paths(node.path)) for node, kind in sound)
    return Plan(tuple(points), tuple(skipped))


def _no_images(tree: SnapshotTree) -> Iterator[Skipped]:
    """Files and folders of which the tree has no image, although there is or should be one."""
    images = {str(node.path) for node in tree.images}
    for finding in tree.findings:
        is_lost = finding.severity is Severity.ERROR or finding.code == "tree.stranger"
        if is_lost and finding.location.file not in images:
            yield Skipped.because(Path(finding.location.file), finding)


def _fault(node: TreeNode) -> Skipped | None:
    """Why the disk of an image cannot be exported, as far as its headers and its link tell."""
    for finding in (*node.image_findings, *node.findings):
        if finding.severity is Severity.ERROR:
            return Skipped.because(node.path, finding)
    if node.type is DiskType.DIFFERENCING and node.link is not LinkVerdict.OK:
        reason = str(node.findings[0]) if node.findings else "its parent is missing"
        return Skipped(node.path, reason, node.findings[0].code if node.findings else "", EXIT_MISSING)
    return None


def _blamed(above: Skipped) -> tuple[str, str, int]:
    reason = (
        above.reason
        if above.reason.startswith("its ancestor ")
        else f"its ancestor {above.path}: {above.reason}"
    )
    return reason, above.code, above.exit_code


# ------------------------------------------------------------ names


def _names(images: Sequence[tuple[Path, TargetFormat]], folders: Sequence[Path]) -> Mapping[Path, str]:
    """A name in one folder for each image: its own where that is enough, with its folders where it is not."""
    short = {path: _with_suffix(_safe(path.name), kind) for path, kind in images}
    count = Counter(fold(name) for name in short.values())
    names: dict[Path, str] = {}
    taken: set[str] = set()
    for path, kind in images:
        name = short[path]
        if count[fold(name)] > 1:
            name = _with_suffix("-".join(_safe(part) for part in _relative(path, folders).parts), kind)
        names[path] = _free(name, kind, taken)
        taken.add(fold(names[path]))
    return names


def _relative(path: Path, folders: Iterable[Path]) -> Path:
    for folder in folders:
        if path.is_relative_to(folder):
            return path.relative_to(folder)
    return Path(path.name)


def _with_suffix(name: str, kind: TargetFormat) -> str:
    """``name``, with a suffix when it does not claim the format yet."""
    return name if claimed_format(name) is kind else f"{name}.{kind}"


def _free(name: str, kind: TargetFormat, taken: set[str]) -> str:
    """``name``, with a number when an image before it has it."""
    stem, suffix = os.path.splitext(name)  # noqa: PTH122 - text
    number = 1
    while fold(name) in taken:
        number += 1
        name = f"{stem}~{number}{suffix}"
    return name


def _safe(name: str) -> str:
    """``name`` as Windows too can have it: an increment records its parent's name for Windows."""
    text = name.encode("utf-8", "replace").decode("utf-8").translate(_BAD_CHARACTERS)
    text = "".join(c if c.isprintable() else "_" for c in text).rstrip(". ") or "_"
    raw = text.encode()
    if len(raw) > _NAME_BYTES_MAX:
        text = f"{raw[: _NAME_BYTES_MAX - 9].decode(errors='ignore')}~{sha256(raw).hexdigest()[:8]}"
    return f"_{text}" if component_fault(text) else text
