"""A snapshot tree as JSON, and drawn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from vhdtool.chain.chain import LinkVerdict
from vhdtool.chain.tree import Role, SnapshotTree, TreeNode
from vhdtool.report.findings import finding_lines, findings_json
from vhdtool.report.text import Document, Paint, count, name_of, plain, size_text


@dataclass(frozen=True, slots=True)
class Branches:
    """What a tree is drawn with."""

    fork: str
    last: str
    through: str


BOXES: Final = Branches("├── ", "└── ", "│   ")
ASCII: Final = Branches("|-- ", "`-- ", "|   ")
# Deeper than this the branches are not drawn on: no screen is that wide.
_DRAWN_MAX: Final = 40
_LABEL_MAX: Final = 60

_ROLE_TEXT: Final = {
    LinkVerdict.MISSING: "its parent is missing",
    LinkVerdict.MISMATCH: "its parent is not the one it was made from",
    LinkVerdict.LOOP: "it is its own ancestor",
}


def tree_json(tree: SnapshotTree) -> Document:
    """The document of ``tree --json``."""
    return {
        "images": [
            {
                "path": str(node.path),
                "parent": None if node.parent is None else str(node.parent),
                "children": [str(child) for child in node.children],
                "link": str(node.link),
                "role": str(node.role),
            }
            for node in tree
        ],
        "findings": findings_json(tree.all_findings()),
    }


def tree_text(tree: SnapshotTree, branches: Branches = BOXES, paint: Paint = plain) -> str:
    """The same for people: each image below its parent, with size, date and role."""
    rows = list(_rows(tree, branches))
    width = min(_LABEL_MAX, max((len(prefix) + len(label) for prefix, label, _ in rows), default=0))
    lines = [_line(prefix, label, node, width, paint) for prefix, label, node in rows]
    summary = ", ".join(
        (
            count(len(tree), "image"),
            count(len(tree.bases), "base"),
            count(len(tree.leaves), "leaf", "leaves"),
            count(len(tree.orphans), "orphan"),
            count(tree.strangers, "other file"),
        )
    )
    parts = ["\n".join(lines)] if lines else []
    findings = finding_lines(tree.all_findings(), paint=paint)
    if findings:
        parts.append("\n".join(findings))
    parts.append(summary)
    return "\n\n".join(parts)


def _rows(tree: SnapshotTree, branches: Branches) -> Iterator[tuple[str, str, TreeNode]]:
    """Prefix, label and image of every line, from the roots down, without recursion."""
    # What is still to be drawn, the next on top: image, prefix of its children, its own branch, depth.
    pending = [(node, "", "", 0) for node in reversed(tree.roots)]
    while pending:
        node, before, branch, depth = pending.pop()
        folder = None if node.parent is None else node.parent.parent
        label = name_of(node.path.name if node.path.parent == folder else node.path)
        yield before + branch, label, node
        if depth >= _DRAWN_MAX:
            below = f"... depth {depth + 1} "
        else:
            below = before + {"": "", branches.fork: branches.through}.get(branch, "    ")
        children = tree.children_of(node.path)
        for i, child in enumerate(reversed(children)):
            own = "" if depth >= _DRAWN_MAX else branches.last if i == 0 else branches.fork
            pending.append((child, below, own, depth + 1))


def _line(prefix: str, label: str, node: TreeNode, width: int, paint: Paint) -> str:
    gap = " " * max(0, width - len(prefix) - len(label))
    kind = f"{node.format.upper()} {node.type}"
    size = size_text(node.virtual_size)
    facts = f"{kind:<17}  {size:>10}  {size_text(node.file_size):>10} stored  {_date(node)}"
    return f"{prefix}{paint(label, 'name')}{gap}  {paint(facts, 'faint')}  {_role(node, paint)}"


def _role(node: TreeNode, paint: Paint) -> str:
    if node.role is Role.ORPHAN:
        return paint(f"orphan: {_ROLE_TEXT.get(node.link, 'it needs a parent')}", "error")
    fault = _ROLE_TEXT.get(node.link)
    return paint(f"{node.role}: {fault}", "error") if fault else paint(str(node.role), "good")


def _date(node: TreeNode) -> str:
    """When the file was last written to."""
    try:
        return datetime.fromtimestamp(node.modified, UTC).strftime("%Y-%m-%d %H:%M")
    except (OverflowError, ValueError, OSError):  # a file system can hold years that Python cannot
        return f"{'-':>16}"
