"""Snapshot trees: all images below some folders, and the links between them.

::

    base.vhdx ──► one.avhdx ──► two.avhdx          a chain is a path in the tree
              └─► other.avhdx                      a fork
    lost.avhdx                                     an orphan: its parent is not here

Made from headers only, one file open at a time.  Links go by path *and* identity, as in a chain; where no
path leads to the right file, an identity that exactly one file carries links too (a moved or renamed parent).
What is made is values: nothing is read once the tree is there.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal

from vhdtool.chain.candidates import (
    AMBIGUOUS_SHOWN_MAX,
    VHD_SET,
    Candidate,
    file_keys,
    folders_of,
    named_candidates,
    open_candidate,
)
from vhdtool.chain.chain import DEPTH_MAX, FoundBy, LinkVerdict
from vhdtool.chain.discover import AnyPath
from vhdtool.chain.link import (
    IdentityKey,
    ImageFacts,
    Tried,
    ambiguous_finding,
    depth_finding,
    identity_key,
    judge_link,
    loop_finding,
    missing_finding,
    refusal_finding,
    wanted_identities,
)
from vhdtool.chain.paths import Folders, PathMap
from vhdtool.errors import (
    EXIT_CORRUPT,
    EXIT_IO,
    FileMissingError,
    Finding,
    Location,
    ReadError,
    Severity,
    printable,
)
from vhdtool.formats.image import OpenOptions
from vhdtool.formats.registry import CLAIMING_SUFFIXES
from vhdtool.model.identity import DiskType, Identity, ImageFormat
from vhdtool.source import FileKey

# How many paths one finding names.
PATHS_SHOWN_MAX: Final = 8


class Role(StrEnum):
    """An image's place: BASE needs no parent, an ORPHAN needs one and has none, a LEAF has no child."""

    BASE = "base"
    MIDDLE = "middle"
    LEAF = "leaf"
    ORPHAN = "orphan"


@dataclass(frozen=True, slots=True)
class TreeNode:
    """One image of a tree.

    Attributes:
        path: where its file is; of several links to one file, the first that is no symbolic link.
        virtual_size, file_size: bytes.
        modified: of the file, seconds since 1970.
        parent: the image that it is linked to, None for a base and for what has no parent here.
        children: in the order of their paths.
        link: the verdict on the link to the parent; BASE without a need for one.
        found_by: how the parent was found, None without one.
        findings: about the link.
        image_findings: about the image itself.
    """

    path: Path
    format: ImageFormat
    type: DiskType
    virtual_size: int
    file_size: int
    disk_id: Identity | None
    write_id: Identity | None
    created: datetime | None
    modified: float
    parent: Path | None
    children: tuple[Path, ...]
    link: LinkVerdict
    role: Role
    found_by: FoundBy | None
    findings: tuple[Finding, ...]
    image_findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True, eq=False)
class SnapshotTree:
    """The images of folders and the links between them: a forest, without loops.

    Attributes:
        images: in the order of their paths.
        findings: about links, then about the folders and what else lies in them.
        strangers: how many files are no images, those with an image's name included.
    """

    images: tuple[TreeNode, ...]
    findings: tuple[Finding, ...] = ()
    strangers: int = 0
    _by_path: Mapping[Path, TreeNode] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        by_path = MappingProxyType({node.path: node for node in self.images})
        object.__setattr__(self, "_by_path", by_path)

    def __getitem__(self, path: AnyPath) -> TreeNode:
        """The image at ``path``, as the tree spells it; KeyError when there is none."""
        return self._by_path[Path(path)]

    def __contains__(self, path: AnyPath) -> bool:
        return Path(path) in self._by_path

    def __iter__(self) -> Iterator[TreeNode]:
        return iter(self.images)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def roots(self) -> tuple[TreeNode, ...]:
        """Where drawing begins: images without a parent here, bases and orphans."""
        return tuple(node for node in self.images if node.parent is None)

    @property
    def bases(self) -> tuple[TreeNode, ...]:
        """Images that need no parent."""
        return tuple(node for node in self.images if node.role is Role.BASE)

    @property
    def orphans(self) -> tuple[TreeNode, ...]:
        """Images that need a parent and have none here."""
        return tuple(node for node in self.images if node.role is Role.ORPHAN)

    @property
    def leaves(self) -> tuple[TreeNode, ...]:
        """Images that no other image needs: candidates for current states; bases and orphans too."""
        return tuple(node for node in self.images if not node.children)

    @property
    def forks(self) -> tuple[TreeNode, ...]:
        """Images with several children."""
        return tuple(node for node in self.images if len(node.children) > 1)

    def children_of(self, path: AnyPath) -> tuple[TreeNode, ...]:
        """The images made from the one at ``path``."""
        return tuple(self._by_path[child] for child in self[path].children)

    def ancestors(self, path: AnyPath) -> tuple[TreeNode, ...]:
        """The parent of the image at ``path``, its parent, and so on up to the last one here."""
        found = []
        node = self[path]
        while node.parent is not None:
            node = self._by_path[node.parent]
            found.append(node)
        return tuple(found)

    def chain_paths(self, path: AnyPath) -> tuple[Path, ...]:
        """The files behind the point in time at ``path``: itself first, the last ancestor at the end."""
        return (self[path].path, *(node.path for node in self.ancestors(path)))

    def all_findings(self) -> tuple[Finding, ...]:
        """Findings of every image, then the tree's own."""
        return (*(finding for node in self.images for finding in node.image_findings), *self.findings)


def find_snapshots(
    *folders: AnyPath,
    maps: Sequence[PathMap | str] = (),
    log: Literal["before", "after"] = "after",
    ignore_checksums: bool = False,
    recursive: bool = True,
) -> SnapshotTree:
    r"""All images in ``folders`` as a forest, whatever their names; headers only.

    Symbolic links to folders are not followed below ``folders``: they may lead out of what was asked for.

    Args:
        maps: where Windows folders lie here, ``PathMap`` or ``'D:\VMs=DIR'``.
        log: "after" replays pending VHDX logs in memory, "before" leaves them out.
        ignore_checksums: accept structures whose checksum is wrong and whose fields are plausible.
        recursive: look into the folders below too.

    Raises:
        FileMissingError, ReadError: one of ``folders`` cannot be listed.
        ValueError: a map that is none, or no folder.
    """
    if not folders:
        raise ValueError("no folder to look into")
    survey = _Survey(OpenOptions(log, ignore_checksums))
    survey.collect([Path(folder) for folder in folders], recursive)
    return _Linker(survey, [PathMap.parse(m) if isinstance(m, str) else m for m in maps]).tree()


@dataclass(frozen=True, slots=True)
class _Entry:
    """One image, its file closed again."""

    path: Path
    facts: ImageFacts
    file_size: int
    created: datetime | None
    findings: tuple[Finding, ...]


class _Survey:
    """Walks folders and reads the headers of what lies in them."""

    def __init__(self, options: OpenOptions) -> None:
        self.entries: list[_Entry] = []
        # Every file looked at: the place of its entry, or in words why it has none.
        self.files: dict[FileKey, int | str] = {}
        self.findings: list[Finding] = []
        self.strangers = 0
        self._options = options

    def collect(self, folders: Sequence[Path], recursive: bool) -> None:
        """Fill ``entries``, in the order of their paths."""
        found = dict.fromkeys(self._walk(folders, recursive))
        # Files before links to them; the first piece of a split disk before the others.
        for is_link, _, path in sorted((link, not _claims(path), path) for path, link in found):
            self._look(path, is_link)
        order = sorted(range(len(self.entries)), key=lambda i: self.entries[i].path)
        place = {old: new for new, old in enumerate(order)}
        self.entries = [self.entries[i] for i in order]
        self.files = {k: v if isinstance(v, str) else place[v] for k, v in self.files.items()}

    def _walk(self, folders: Sequence[Path], recursive: bool) -> Iterator[tuple[Path, bool]]:
        """Paths that are no folders, and whether they are symbolic links."""
        seen: set[FileKey] = set()
        pending = [(folder, True) for folder in reversed(folders)]
        while pending:
            folder, given = pending.pop()
            try:
                status = folder.stat()
                if (status.st_dev, status.st_ino) in seen:
                    continue
                seen.add((status.st_dev, status.st_ino))
                with os.scandir(folder) as listing:
                    entries = sorted(listing, key=lambda entry: entry.name)
            except (OSError, ValueError) as error:
                if given:
                    raise _cannot_list(folder, error) from error
                self._note(
                    Severity.ERROR, "tree.unreadable", folder, "this folder cannot be listed", _why(error)
                )
                continue
            for entry in reversed(entries):
                path = folder / entry.name
                if not _is_folder(entry):
                    yield path, entry.is_symlink()
                elif entry.is_symlink():
                    self._note(Severity.INFO, "tree.link", path, "a link to a folder is not followed")
                elif recursive:
                    pending.append((path, False))

    def _look(self, path: Path, is_link: bool) -> None:
        """Read the headers of one file, if it is an image that is not known yet."""
        if is_link and _key_of(path) in self.files:
            return
        candidate = open_candidate(path, self._options)
        if candidate.key in self.files:  # a second hard link, or a later piece of a split disk
            if candidate.image is not None:
                candidate.image.close()
            return
        image = candidate.image
        if image is None:
            self._note_other(path, candidate)
            return
        keys = file_keys(image)
        entry = _Entry(path, ImageFacts.of(image), image.source.size, image.created, image.findings)
        image.close()
        for key in keys:
            self.files[key] = len(self.entries)
        self.entries.append(entry)

    def _note_other(self, path: Path, candidate: Candidate) -> None:
        """``path`` is no image that can be parsed."""
        if candidate.key is not None:
            self.files[candidate.key] = candidate.outcome
        if candidate.error is not None:
            self.findings.append(refusal_finding(path, candidate.error))
            return
        self.strangers += 1
        if candidate.outcome == VHD_SET:
            self._note(Severity.INFO, "tree.vhd_set", path, "a VHD Set: it names its disks, and holds none")
        elif _claims(path):
            what = "this has an image's name and is none"
            self._note(Severity.WARNING, "tree.stranger", path, what, candidate.outcome)

    def _note(self, severity: Severity, code: str, path: Path, what: str, found: str = "") -> None:
        exit_code = EXIT_IO if code == "tree.unreadable" else EXIT_CORRUPT
        self.findings.append(Finding(code, severity, Location(str(path)), what, found, exit_code=exit_code))


@dataclass(slots=True)
class _Link:
    """What is known of one entry's link while the tree is made; ``parent`` is an entry's place."""

    verdict: LinkVerdict
    parent: int | None = None
    found_by: FoundBy | None = None
    findings: tuple[Finding, ...] = ()


class _Linker:
    """Links the entries of a survey.  Nothing here is quadratic: every search is a look into a table."""

    def __init__(self, survey: _Survey, maps: Sequence[PathMap]) -> None:
        self._survey = survey
        self._entries = survey.entries
        self._maps = maps
        self._folders = Folders()
        self._by_identity: dict[IdentityKey, list[int]] = {}
        self._by_identity_here: dict[tuple[Path, IdentityKey], list[int]] = {}
        for i, entry in enumerate(self._entries):
            key = identity_key(entry.facts)
            if key is not None:
                self._by_identity.setdefault(key, []).append(i)
                self._by_identity_here.setdefault((entry.path.parent, key), []).append(i)

    def tree(self) -> SnapshotTree:
        """The finished tree."""
        family: dict[Identity, list[int]] = {}
        for i, entry in enumerate(self._entries):
            if entry.facts.format is ImageFormat.VHDX and entry.facts.disk_id is not None:
                members = family.setdefault(entry.facts.disk_id, [])
                if len(members) < 2:
                    members.append(i)
        links = [self._follow(i, family) for i in range(len(self._entries))]
        self._break_loops(links)
        children: list[list[int]] = [[] for _ in links]
        for i, link in enumerate(links):
            if link.parent is not None:
                children[link.parent].append(i)
        self._look_down(links, children)
        images = tuple(self._node(i, links, children) for i in range(len(links)))
        findings = [finding for link in links for finding in link.findings]
        findings += self._duplicates()
        findings += self._survey.findings
        return SnapshotTree(images, tuple(findings), self._survey.strangers)

    def _follow(self, i: int, family: Mapping[Identity, Sequence[int]]) -> _Link:
        """The link of entry ``i``, loops not yet looked for."""
        facts = self._entries[i].facts
        if facts.type is not DiskType.DIFFERENCING:
            return _Link(LinkVerdict.BASE)
        tried = Tried()
        wanted = wanted_identities(facts.parent)
        if facts.parent is None or not wanted:
            return _Link(
                LinkVerdict.MISSING,
                findings=(missing_finding(facts, "the parent's identity is not recorded", tried),),
            )
        own = self._entries[i].path
        wanted = tuple(identity for identity in wanted if identity != facts.write_id)
        if not wanted:
            return _Link(LinkVerdict.LOOP, findings=(loop_finding(facts, facts.write_id, own),))
        wrong: ImageFacts | None = None
        outside: Path | None = None
        beside = folders_of(own)
        for found_by, path in named_candidates(facts.parent, beside, (), self._maps, self._folders, tried):
            key = _key_of(path)
            known = self._survey.files.get(key) if key is not None else None
            if key is None or isinstance(known, str):
                tried.add(path, known if isinstance(known, str) else "no regular file")
            elif known is None:
                outside = outside or path
                tried.add(path, "not below these folders")
            else:
                parent = self._entries[known].facts
                if parent.format is facts.format and parent.write_id in wanted:
                    return self._linked(i, known, found_by)
                if parent.format is facts.format:
                    wrong = wrong or parent
                tried.add(path, f"a {parent.format.upper()} with identity {parent.write_id}")
        return self._by_its_identity(i, wanted) or self._unlinked(i, wrong, outside, tried, family)

    def _by_its_identity(self, i: int, wanted: Sequence[Identity]) -> _Link | None:
        """The link to the one file that carries the identity, first in the child's own folder."""
        facts = self._entries[i].facts
        for identity in wanted:
            key = (facts.format, identity.raw)
            folder = self._entries[i].path.parent
            matches = self._by_identity_here.get((folder, key)) or self._by_identity.get(key, [])
            if len(matches) > 1:
                paths = [self._entries[j].path for j in matches[:AMBIGUOUS_SHOWN_MAX]]
                finding = ambiguous_finding(facts, paths, len(matches))
                return _Link(LinkVerdict.MISSING, findings=(finding,))
            if matches:
                return self._linked(i, matches[0], FoundBy.IDENTITY)
        return None

    def _linked(self, i: int, parent: int, found_by: FoundBy) -> _Link:
        verdict, findings = judge_link(self._entries[i].facts, self._entries[parent].facts)
        return _Link(verdict, parent, found_by, findings)

    def _unlinked(
        self,
        i: int,
        wrong: ImageFacts | None,
        outside: Path | None,
        tried: Tried,
        family: Mapping[Identity, Sequence[int]],
    ) -> _Link:
        """An orphan, with whatever can be said of where its parent may be."""
        facts = self._entries[i].facts
        if wrong is not None:
            _, findings = judge_link(facts, wrong, tried=str(tried))
            return _Link(LinkVerdict.MISMATCH, findings=findings[:1])
        if outside is not None:
            place = Location(facts.name, None, "parent")
            what = "the parent is not below these folders, but a file stands where its path leads"
            finding = Finding("tree.parent_outside", Severity.WARNING, place, what, str(outside))
            return _Link(LinkVerdict.MISSING, findings=(finding,))
        what = "the parent was not found"
        members = family.get(facts.disk_id, ()) if facts.disk_id is not None else ()
        other = next((j for j in members if j != i), None)
        if other is not None:
            what += f", but {self._entries[other].path} has the same virtual disk id"
        return _Link(LinkVerdict.MISSING, findings=(missing_finding(facts, what, tried),))

    def _break_loops(self, links: list[_Link]) -> None:
        """Unlink every image that is its own ancestor; what hangs on such a loop keeps its link."""
        done = [False] * len(links)
        for start in range(len(links)):
            trail: list[int] = []
            at: int | None = start
            while at is not None and not done[at]:
                done[at] = True
                trail.append(at)
                at = links[at].parent
            if at is None or at not in (on_trail := dict.fromkeys(trail)):
                continue
            loop = trail[list(on_trail).index(at) :]
            parents = [links[i].parent for i in loop]
            for i, parent in zip(loop, parents):
                assert parent is not None
                above = self._entries[parent]
                finding = loop_finding(self._entries[i].facts, above.facts.write_id, above.path)
                links[i] = _Link(LinkVerdict.LOOP, findings=(*links[i].findings, finding))

    def _look_down(self, links: list[_Link], children: list[list[int]]) -> None:
        """From every root down: what only a whole chain shows (its depth, an identity that occurs twice)."""
        above: dict[IdentityKey, int] = {}  # identities on the way down from the root, and whose
        for root in (i for i, link in enumerate(links) if link.parent is None):
            pending = [(root, 1, False)]
            while pending:
                i, depth, leaving = pending.pop()
                facts = self._entries[i].facts
                key = identity_key(facts)
                if leaving:
                    if key is not None and above.get(key) == i:
                        del above[key]
                    continue
                pending.append((i, depth, True))
                if depth == DEPTH_MAX + 1:
                    links[i].findings += (depth_finding(facts),)
                if key is not None and above.setdefault(key, i) != i:
                    finding = loop_finding(facts, facts.write_id, self._entries[above[key]].path)
                    links[i].findings += (finding,)
                pending.extend((child, depth + 1, False) for child in reversed(children[i]))

    def _node(self, i: int, links: Sequence[_Link], children: Sequence[Sequence[int]]) -> TreeNode:
        entry, link = self._entries[i], links[i]
        if link.verdict is LinkVerdict.BASE:
            role = Role.BASE
        elif link.parent is None:
            role = Role.ORPHAN
        else:
            role = Role.MIDDLE if children[i] else Role.LEAF
        return TreeNode(
            path=entry.path,
            format=entry.facts.format,
            type=entry.facts.type,
            virtual_size=entry.facts.virtual_size,
            file_size=entry.file_size,
            disk_id=entry.facts.disk_id,
            write_id=entry.facts.write_id,
            created=entry.created,
            modified=entry.facts.mtime or 0.0,
            parent=None if link.parent is None else self._entries[link.parent].path,
            children=tuple(self._entries[child].path for child in children[i]),
            link=link.verdict,
            role=role,
            found_by=link.found_by,
            findings=link.findings,
            image_findings=entry.findings,
        )

    def _duplicates(self) -> Iterator[Finding]:
        """Different files with one identity: copies, or a copy that was written to since."""
        for places in self._by_identity.values():
            if len(places) < 2:
                continue
            paths = [str(self._entries[i].path) for i in places[:PATHS_SHOWN_MAX]]
            more = f" and {len(places) - len(paths)} more" if len(places) > len(paths) else ""
            yield Finding(
                "tree.duplicate",
                Severity.WARNING,
                Location(paths[0]),
                f"the identity {self._entries[places[0]].facts.write_id} is carried by other files too",
                "; ".join(paths[1:]) + more,
                "one file",
            )


def _claims(path: Path) -> bool:
    """Whether the name says that this is an image."""
    return path.suffix.lower() in CLAIMING_SUFFIXES


def _key_of(path: Path) -> FileKey | None:
    """Which file stands under ``path``, links followed; None for what is no regular file."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return (status.st_dev, status.st_ino) if stat.S_ISREG(status.st_mode) else None


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether a folder stands there, links followed; a link that leads round in a circle is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _why(error: Exception) -> str:
    return (os.strerror(error.errno) if isinstance(error, OSError) and error.errno else "") or "no such name"


def _cannot_list(folder: Path, error: Exception) -> FileMissingError | ReadError:
    if isinstance(error, (FileNotFoundError, ValueError)):
        return FileMissingError(f"no such folder: {printable(str(folder))}")
    return ReadError(f"cannot list {printable(str(folder))}: {_why(error)}")
