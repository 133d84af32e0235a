"""Finds the parents of an image, one after the other, and judges each link.

::

    a child's record of its parent                 what is tried, in this order
    ──────────────────────────────                 ─────────────────────────────────────────────
    relative paths            relative_path   ──►  from the child's folder, upwards too
    the names of all paths    name            ──►  in the child's folder, then in each --search folder
    full paths                volume_path,    ──►  where a --map covers them, never as they stand
                              absolute_path
    the identity              identity        ──►  every image in those folders, by their headers

A candidate is accepted by identity, never by its name: it must be, links followed, a regular file, an
image of the child's format by its content, and carry an identity that the child recorded.  Anything else is
passed over and remembered, so that a refusal can say everything that was tried.

The paths come from strangers, and so may the files: a candidate that is no image is never quoted.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from vhdtool.chain.candidates import (
    AMBIGUOUS_SHOWN_MAX,
    Candidate,
    IdentityIndex,
    file_keys,
    folders_of,
    named_candidates,
    open_candidate,
)
from vhdtool.chain.chain import DEPTH_MAX, Chain, FoundBy, Layer, LinkVerdict
from vhdtool.chain.link import (
    IdentityKey,
    ImageFacts,
    Tried,
    ambiguous_finding,
    depth_finding,
    identity_key,
    judge_link,
    loop_finding,
    mismatch_finding,
    missing_finding,
    refusal_finding,
    wanted_identities,
    wrong_format_finding,
)
from vhdtool.chain.paths import (
    FOLDER_ENTRIES_MAX,
    Folders,
    PathMap,
)
from vhdtool.errors import (
    Finding,
    Severity,
    VhdtoolError,
    raise_first_error,
)
from vhdtool.formats.image import DiskImage, OpenOptions
from vhdtool.formats.registry import CLAIMING_SUFFIXES, open_image
from vhdtool.model.identity import DiskType, Identity, ImageFormat
from vhdtool.source import FileKey

AnyPath = str | os.PathLike[str]


def open_chain(
    leaf: AnyPath,
    *,
    search: Sequence[AnyPath] | AnyPath = (),
    maps: Sequence[PathMap | str] = (),
    log: Literal["before", "after"] = "after",
    ignore_checksums: bool = False,
    allow_mismatch: bool = False,
    strict: bool = True,
) -> Chain:
    r"""Open ``leaf`` and every parent that it reads through; headers only.

    Args:
        leaf: any image of a snapshot tree; a raw disk is a chain of one layer.
        search: folders where parents may be too.
        maps: where Windows folders lie here, ``PathMap`` or ``'D:\VMs=DIR'``.
        log: "after" replays pending VHDX logs in memory, "before" leaves them out.
        ignore_checksums: accept structures whose checksum is wrong and whose fields are plausible.
        allow_mismatch: go on with a parent whose identity does not agree, when no other is found.
        strict: refuse at the first ERROR; otherwise return what was found, with its findings, as a chain
            that may not be ``complete``.

    Raises:
        FileMissingError, ReadError, FormatError: about ``leaf`` itself.
        ParentNotFoundError, ParentMismatchError, ChainLoopError, ChainError, FormatError: about its
            parents, when ``strict``.
        ValueError: a map that is none.
    """
    folders = (search,) if isinstance(search, (str, os.PathLike)) else search
    finder = ParentFinder(
        OpenOptions(log, ignore_checksums),
        search=[Path(folder) for folder in folders],
        maps=[PathMap.parse(m) if isinstance(m, str) else m for m in maps],
        allow_mismatch=allow_mismatch,
    )
    opened: list[DiskImage] = []
    layers: list[Layer] = []
    trail = Trail()
    path, found_by = Path(leaf), FoundBy.GIVEN
    try:
        image = open_image(leaf, finder.options, strict=strict)
        opened.append(image)
        while True:
            if strict:
                raise_first_error(image.errors)
            trail.add(image, path)
            step = finder.follow(image, path, trail)
            if step.image is not None:
                opened.append(step.image)
            layers.append(Layer(image, path, found_by, step.link, step.findings))
            if strict:
                raise_first_error(step.findings)
            if step.image is None:
                return Chain(layers)
            image, path, found_by = step.image, step.path, step.found_by
    except BaseException:
        for image in opened:
            image.close()
        raise


class Step(NamedTuple):
    """What came of following one image's link; ``image`` is its open parent, None where the chain ends."""

    link: LinkVerdict
    findings: tuple[Finding, ...] = ()
    image: DiskImage | None = None
    path: Path = Path()
    found_by: FoundBy = FoundBy.GIVEN


class Trail:
    """The layers so far: which files, and which identities."""

    def __init__(self) -> None:
        self.depth = 0
        self._files: set[FileKey] = set()
        self._identities: dict[IdentityKey, Path] = {}

    def add(self, image: DiskImage, path: Path) -> None:
        """``image`` is a layer."""
        self.depth += 1
        self._files.update(file_keys(image))
        identity = identity_key(image)
        if identity:
            self._identities.setdefault(identity, path)

    def carries(self, image: DiskImage) -> bool:
        """Whether ``image`` is a layer already, by its file or by its identity."""
        return identity_key(image) in self._identities or any(key in self._files for key in file_keys(image))

    def identity(self, format_: ImageFormat, identity: Identity) -> Path | None:
        """The layer that carries ``identity``."""
        return self._identities.get((format_, identity.raw))


@dataclass(slots=True)
class _Search:
    """What one link's search is for, and what it has passed over.

    Attributes:
        wanted: the identities that are accepted: of those recorded, the ones that no layer carries yet.
        seen: paths tried already; several records of a child lead to the same one.
        wrong: images of another identity: how found, where, facts, and whether they are layers already.
        refused: images that their own reader refused.
        others: regular files that are no image of the child's format.
    """

    child: ImageFacts
    wanted: tuple[Identity, ...]
    tried: Tried = field(default_factory=Tried)
    seen: set[str] = field(default_factory=set)
    wrong: list[tuple[FoundBy, Path, ImageFacts, bool]] = field(default_factory=list)
    refused: list[tuple[Path, VhdtoolError]] = field(default_factory=list)
    others: list[tuple[Path, Candidate]] = field(default_factory=list)


class ParentFinder:
    """Follows links, for one chain: what it learns of folders on the way is kept for the next link."""

    def __init__(
        self,
        options: OpenOptions,
        *,
        search: Sequence[Path] = (),
        maps: Sequence[PathMap] = (),
        allow_mismatch: bool = False,
    ) -> None:
        self.options = options
        self._search = tuple(search)
        self._maps = tuple(maps)
        self._allow_mismatch = allow_mismatch
        self._folders = Folders()
        self._index = IdentityIndex(options)
        self._latest: tuple[DiskImage, ImageFacts] | None = None

    def follow(self, image: DiskImage, path: Path, trail: Trail) -> Step:
        """Find and open the parent of ``image``, the last layer of ``trail``."""
        if image.type is not DiskType.DIFFERENCING:
            return Step(LinkVerdict.BASE)
        child = self._facts(image)
        search = _Search(child, wanted_identities(image.parent))
        if trail.depth >= DEPTH_MAX:
            return Step(LinkVerdict.MISSING, (depth_finding(child),))
        if image.parent is None or not search.wanted:
            return Step(
                LinkVerdict.MISSING,
                (missing_finding(child, "the parent's identity is not recorded", search.tried),),
            )
        above = {identity: trail.identity(child.format, identity) for identity in search.wanted}
        search.wanted = tuple(identity for identity, layer in above.items() if layer is None)
        if not search.wanted:
            return Step(LinkVerdict.LOOP, (loop_finding(child, *next(iter(above.items()))),))
        beside = folders_of(path)
        named = named_candidates(image.parent, beside, self._search, self._maps, self._folders, search.tried)
        for found_by, candidate in named:
            parent = self._accept(search, trail, found_by, candidate)
            if parent is not None:
                return self._linked(child, parent, candidate, found_by)
        for folder in dict.fromkeys((*beside, *self._search)):
            matches = self._index.matches(folder, child.format, search.wanted)
            if len(matches) > 1:
                return Step(
                    LinkVerdict.MISSING,
                    (ambiguous_finding(child, matches[:AMBIGUOUS_SHOWN_MAX], len(matches)),),
                )
            for candidate in matches:
                parent = self._accept(search, trail, FoundBy.IDENTITY, candidate)
                if parent is not None:
                    return self._linked(child, parent, candidate, FoundBy.IDENTITY)
            search.tried.add(folder, f"no match among its {self._index.count(folder)} images")
        return self._not_found(search)

    def _accept(self, search: _Search, trail: Trail, found_by: FoundBy, path: Path) -> DiskImage | None:
        """Open ``path`` if it is what the child was made from; otherwise remember why not."""
        name = str(path)
        if name in search.seen:
            return None
        search.seen.add(name)
        candidate = open_candidate(path, self.options, search.child.format)
        parent = candidate.image
        if parent is None:
            if candidate.error is not None:
                search.refused.append((path, candidate.error))
            elif candidate.is_file:
                search.others.append((path, candidate))
            search.tried.add(path, candidate.outcome)
            return None
        if parent.write_id in search.wanted:
            return parent
        is_layer = trail.carries(parent)
        search.wrong.append((found_by, path, ImageFacts.of(parent), is_layer))
        note = ", already a layer of this chain" if is_layer else ""
        search.tried.add(path, f"identity {parent.write_id}{note}")
        parent.close()
        return None

    def _linked(
        self, child: ImageFacts, parent: DiskImage, path: Path, found_by: FoundBy, tried: str = ""
    ) -> Step:
        facts = self._facts(parent)
        link, findings = judge_link(child, facts, allow_mismatch=self._allow_mismatch, tried=tried)
        return Step(link, findings, parent, path, found_by)

    def _facts(self, image: DiskImage) -> ImageFacts:
        """The facts about ``image``; a parent is the next link's child."""
        if self._latest is None or self._latest[0] is not image:
            self._latest = image, ImageFacts.of(image)
        return self._latest[1]

    def _not_found(self, search: _Search) -> Step:
        """What to say when nothing was accepted: the nearest thing to a parent first."""
        if search.wrong:
            return self._mismatched(search)
        if search.refused:
            path, error = search.refused[0]
            missing = missing_finding(search.child, "the parent was refused", search.tried)
            return Step(LinkVerdict.MISSING, (refusal_finding(path, error), missing))
        if search.others:
            path, other = search.others[0]
            # A name that claims to be an image's is one without its signature; any other file is a raw disk.
            is_raw = other.format is None and path.suffix.lower() not in CLAIMING_SUFFIXES
            finding = wrong_format_finding(search.child, path, other.format, search.tried, is_raw=is_raw)
            return Step(LinkVerdict.MISSING, (finding,))
        finding = missing_finding(search.child, "the parent was not found", search.tried)
        return Step(LinkVerdict.MISSING, (finding,))

    def _mismatched(self, search: _Search) -> Step:
        eligible = [wrong for wrong in search.wrong if not wrong[3]]
        if self._allow_mismatch:
            for found_by, path, _, _ in eligible:
                candidate = open_candidate(path, self.options, search.child.format)
                if candidate.image is not None:
                    return self._linked(search.child, candidate.image, path, found_by, str(search.tried))
            if not eligible:
                _, path, facts, _ = search.wrong[0]
                return Step(LinkVerdict.LOOP, (loop_finding(search.child, facts.write_id, path),))
        _, _, facts, _ = (eligible or search.wrong)[0]
        finding = mismatch_finding(search.child, facts, Severity.ERROR, str(search.tried))
        return Step(LinkVerdict.MISMATCH, (finding,))


assert FOLDER_ENTRIES_MAX > DEPTH_MAX  # a folder of a whole chain is always looked through
