"""vhdtool reads VHD, VHDX and Hyper-V snapshot chains offline, and exports any point in time exactly.

    import vhdtool

    chain = vhdtool.open_chain("leaf.avhdx", search=["parents"])
    chain.read(offset=1 << 20, length=4096)

The names below are imported when they are first used: looking at one header costs neither NumPy nor numba.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vhdtool.chain.chain import Chain as Chain
    from vhdtool.chain.chain import Layer as Layer
    from vhdtool.chain.discover import open_chain as open_chain
    from vhdtool.chain.explain import Explanation as Explanation
    from vhdtool.chain.explain import explain as explain
    from vhdtool.chain.tree import SnapshotTree as SnapshotTree
    from vhdtool.chain.tree import find_snapshots as find_snapshots
    from vhdtool.errors import (
        ChainError as ChainError,
    )
    from vhdtool.errors import (
        ChainLoopError as ChainLoopError,
    )
    from vhdtool.errors import (
        CorruptError as CorruptError,
    )
    from vhdtool.errors import (
        ExportError as ExportError,
    )
    from vhdtool.errors import (
        FileMissingError as FileMissingError,
    )
    from vhdtool.errors import (
        Finding as Finding,
    )
    from vhdtool.errors import (
        FormatError as FormatError,
    )
    from vhdtool.errors import (
        Location as Location,
    )
    from vhdtool.errors import (
        ParentMismatchError as ParentMismatchError,
    )
    from vhdtool.errors import (
        ParentNotFoundError as ParentNotFoundError,
    )
    from vhdtool.errors import (
        ReadError as ReadError,
    )
    from vhdtool.errors import (
        Severity as Severity,
    )
    from vhdtool.errors import (
        SourceChangedError as SourceChangedError,
    )
    from vhdtool.errors import (
        TargetExistsError as TargetExistsError,
    )
    from vhdtool.errors import (
        UnsupportedError as UnsupportedError,
    )
    from vhdtool.errors import (
        VhdtoolError as VhdtoolError,
    )
    from vhdtool.export.create import create_image as create_image
    from vhdtool.export.create import snapshot_image as snapshot_image
    from vhdtool.export.gentle.throttle import Limits as Limits
    from vhdtool.export.job import ExportJob as ExportJob
    from vhdtool.export.job import export_image as export_image
    from vhdtool.export.merge import merge_image as merge_image
    from vhdtool.export.moving.progress import CancelToken as CancelToken
    from vhdtool.export.moving.progress import Progress as Progress
    from vhdtool.export.options import ExportOptions as ExportOptions
    from vhdtool.export.options import ExportReport as ExportReport
    from vhdtool.export.proof.verify import verify_image as verify_image
    from vhdtool.export.sets.allpoints import export_all as export_all
    from vhdtool.formats.image import DiskImage as DiskImage
    from vhdtool.formats.image import OpenOptions as OpenOptions
    from vhdtool.formats.registry import open_image as open_image
    from vhdtool.model.geometry import Geometry as Geometry
    from vhdtool.model.identity import Identity as Identity
    from vhdtool.model.plan import ReadPlan as ReadPlan
    from vhdtool.model.state import BlockState as BlockState
    from vhdtool.model.state import Run as Run

__version__ = "0.1.0"

_HOME_OF = {
    "open_image": "vhdtool.formats.registry",
    "DiskImage": "vhdtool.formats.image",
    "OpenOptions": "vhdtool.formats.image",
    "open_chain": "vhdtool.chain.discover",
    "Chain": "vhdtool.chain.chain",
    "Layer": "vhdtool.chain.chain",
    "explain": "vhdtool.chain.explain",
    "Explanation": "vhdtool.chain.explain",
    "find_snapshots": "vhdtool.chain.tree",
    "SnapshotTree": "vhdtool.chain.tree",
    "ReadPlan": "vhdtool.model.plan",
    "Run": "vhdtool.model.state",
    "BlockState": "vhdtool.model.state",
    "Geometry": "vhdtool.model.geometry",
    "Identity": "vhdtool.model.identity",
    "Finding": "vhdtool.errors",
    "Location": "vhdtool.errors",
    "Severity": "vhdtool.errors",
    "VhdtoolError": "vhdtool.errors",
    "FormatError": "vhdtool.errors",
    "CorruptError": "vhdtool.errors",
    "UnsupportedError": "vhdtool.errors",
    "ChainError": "vhdtool.errors",
    "ParentNotFoundError": "vhdtool.errors",
    "ParentMismatchError": "vhdtool.errors",
    "ChainLoopError": "vhdtool.errors",
    "ExportError": "vhdtool.errors",
    "SourceChangedError": "vhdtool.errors",
    "ReadError": "vhdtool.errors",
    "FileMissingError": "vhdtool.errors",
    "TargetExistsError": "vhdtool.errors",
    "CancelToken": "vhdtool.export.moving.progress",
    "ExportJob": "vhdtool.export.job",
    "ExportOptions": "vhdtool.export.options",
    "ExportReport": "vhdtool.export.options",
    "Limits": "vhdtool.export.gentle.throttle",
    "Progress": "vhdtool.export.moving.progress",
    "export_all": "vhdtool.export.sets.allpoints",
    "export_image": "vhdtool.export.job",
    "merge_image": "vhdtool.export.merge",
    "verify_image": "vhdtool.export.proof.verify",
    "create_image": "vhdtool.export.create",
    "snapshot_image": "vhdtool.export.create",
}

__all__ = [*_HOME_OF, "__version__"]


def __getattr__(name: str) -> object:
    """Import a public name from its home."""
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names, imported or not."""
    return sorted(__all__)
