"""Files for ``sha256sum -c`` and its relatives: ``TARGET.sha256``, one line, beside the target.

The digest is that of the target's file.  Of a raw image that is the digest of the disk, which is computed
beside the copy; any other file is read back (phase "digest"): holes cost what hashing zeros costs.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from vhdtool.export.containers.target import TargetFile
from vhdtool.export.moving.copy import Mover
from vhdtool.export.moving.progress import Reporter
from vhdtool.export.proof.digest import WholeDigest
from vhdtool.model.state import Run
from vhdtool.source import ByteSource


def sums_path(target: Path, name: str) -> Path:
    """Where the sums of ``target`` by digest ``name`` stand: ``disk.raw.sha256``."""
    return target.with_name(f"{target.name}.{name}")


def sums_line(file_name: str, digest: str) -> str:
    r"""A line as ``sha256sum`` prints it and ``sha256sum -c`` reads it, without its end.

    As coreutils do it, a name with a backslash or the end of a line in it is escaped, and a backslash in
    front of the line says so.
    """
    escaped = file_name.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
    mark = "\\" if escaped != file_name else ""
    return f"{mark}{digest}  {escaped}"


def write_sums(sink: TargetFile, target: Path, digest: str) -> None:
    """Write the line for ``target``, a file in the same folder, and finish; publishing is the caller's.

    Raises:
        ExportError: it cannot be written.
    """
    line = os.fsencode(sums_line(target.name, digest) + "\n")
    sink.write_at(0, line)
    sink.finish(len(line))


def file_digests(file: ByteSource, names: Iterable[str], reporter: Reporter) -> dict[str, str]:
    """Digests of all bytes of ``file``, by name; each in a thread of its own.

    Args:
        names: of ``digest.WHOLE_ALGORITHMS``.
        reporter: for the phase "digest" and the size of the file.

    Raises:
        CorruptError, ReadError: it cannot be read.
        CancelledError: the reporter's token says stop.
        MissingPackageError: blake3 is not installed.
    """
    whole: Sequence[WholeDigest] = [WholeDigest(name) for name in dict.fromkeys(names)]
    if whole:
        plans = [[Run(0, file.size, 0, 0)]] if file.size else []
        Mover([file], None, consumers=whole, reporter=reporter).run(plans)
    return {digest.name: digest.hexdigest() for digest in whole}
