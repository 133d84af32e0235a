"""What an export is asked for, and what it reports: values, picklable."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vhdtool.errors import Finding
from vhdtool.export.gentle.throttle import Limits
from vhdtool.export.moving.copy import Damaged
from vhdtool.export.proof.manifest import DamagedRange

if TYPE_CHECKING:
    from vhdtool.chain.engine import Engine

Format = Literal["raw", "vhd", "vhdx", "raw.zst", "e01"]


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What an export did.  Picklable.  Sizes are bytes.

    Attributes:
        target: the path as given, or ``-``.
        format, subformat: of the target.
        virtual_size: of the disk.
        file_size: of the target.
        data_bytes: in chunks that are not all zeros, and not left to a parent, as in the manifest.
        read_bytes: taken from the layers.
        written_bytes: written to the target; the rest are holes.
        root: over all chunk digests, see digest.py; None without a manifest.
        digests: of the whole disk, by name, as asked for.
        manifest: where it was written; None for a stream, or when none was wanted.
        sums: files in the form of ``sha256sum``.
        damaged: ranges exported as zeros, the first ``DamageRecord.KEPT``; all are in the manifest.
        damaged_count, damaged_bytes: of all those.
        resumed_at: guest byte at which an interrupted job was gone on with; 0 for one from the start.
        base: what the manifest says of the base of an increment.
        notes: what is worth a word, and no finding.
        findings: of every layer, links and chain.
        started, finished: UTC.
    """

    target: str
    format: str
    subformat: str
    virtual_size: int
    file_size: int
    data_bytes: int
    read_bytes: int
    written_bytes: int
    root: str | None
    digests: Mapping[str, str]
    manifest: Path | None
    sums: tuple[Path, ...]
    damaged: tuple[DamagedRange, ...]
    damaged_count: int
    damaged_bytes: int
    resumed_at: int
    base: Mapping[str, Any] | None
    notes: tuple[str, ...]
    findings: tuple[Finding, ...]
    started: datetime
    finished: datetime


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """How an export is written.

    Attributes:
        format: of the target; None is what its name claims, else raw.
        subformat: "fixed" or "dynamic"; None is what the format mostly is.
        block_size, logical_sector_size: bytes; None is what Windows takes, and what the leaf has.
        keep_id: keep the leaf's identities instead of making new ones.
        azure: a fixed VHD of whole MiB.
        level: of compression, for raw.zst.
        zero_detect: look for zeros in data, and store none.
        base: an image or an earlier export: write only what differs from it, as a differencing image.
        compare_content: leave out of an increment what was written and is the same as before.
        force: replace what stands under the target's name.
        resume: go on with what an interrupted job left.
        damaged: what to do with ranges that cannot be read: "refuse" the export, or export "zero"s there
            and list them.
        hashes: whole-disk digests to compute, names of ``digest.WHOLE_ALGORITHMS``.
        manifest: where it goes; None is ``TARGET.manifest.json``, and none for a stream; False is none.
        case: what an examiner wants to have in the manifest: "case", "examiner", "evidence", "note".
        sign: a private key file.
        limits: how gently the layers are read.
        settle: seconds for which the chain must have been quiet before it is read.
        sync: wait until the disk has everything before anything is published.
        engine: what resolves the chain: "numpy", "numba", or "auto" for the one that costs less.
        checkpoint_seconds: between notes of how far the job is.
    """

    format: Format | None = None
    subformat: Literal["fixed", "dynamic"] | None = None
    block_size: int | None = None
    logical_sector_size: int | None = None
    keep_id: bool = False
    azure: bool = False
    level: int = 3
    zero_detect: bool = True
    base: Path | None = None
    compare_content: bool = False
    force: bool = False
    resume: bool = False
    damaged: Damaged = "refuse"
    hashes: tuple[str, ...] = ()
    manifest: Path | Literal[False] | None = None
    case: Mapping[str, str] = field(default_factory=dict)
    sign: Path | None = None
    limits: Limits = field(default_factory=Limits)
    settle: float = 0.0
    sync: bool = True
    engine: Engine = "auto"
    checkpoint_seconds: float = 2.0

    def check(self) -> None:
        """Refuse options that are none, or exclude each other.

        Raises:
            ValueError: they do.
        """
        if self.damaged not in ("refuse", "zero"):
            raise ValueError(f"damaged ranges are 'refuse' or 'zero', not {self.damaged!r}")
        if self.base is not None:
            if self.damaged == "zero":
                raise ValueError("an increment holds no damaged ranges")
            if self.subformat is not None or self.azure:
                raise ValueError("an increment is a differencing image, never fixed, dynamic or for Azure")
            if self.format not in (None, "vhd", "vhdx"):
                raise ValueError(f"an increment is a VHD or a VHDX, as its base is, never {self.format}")
        elif self.compare_content:
            raise ValueError("without a base there is nothing to compare the content with")

    def job_document(self) -> dict[str, Any]:
        """What decides about the target's bytes: who goes on with a job must want the same."""
        return {
            "keep_id": self.keep_id,
            "level": self.level,
            "zero_detect": self.zero_detect,
            "base": None if self.base is None else str(self.base),
            "compare_content": self.compare_content,
            "damaged": self.damaged,
            "hashes": list(self.hashes),
        }
