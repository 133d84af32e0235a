"""What reads cost at several points in time of one chain: the price of depth on one's own disk.

One pass over each point's runs, and no draws: the lookups are those of one read of a byte anywhere in what
some layer holds, each byte as likely as the other, so every figure is exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vhdtool.chain.chain import Chain
from vhdtool.chain.flatten import Resolved, resolve
from vhdtool.simulate.cost import LookupCost
from vhdtool.simulate.devices import STATED_DEVICES, DeviceModel, device_figures
from vhdtool.simulate.figures import PointCost, Probes
from vhdtool.simulate.lookups import Rows

if TYPE_CHECKING:
    from vhdtool.chain.engine import Engine


def cost_of_points(
    chain: Chain, *, devices: Sequence[DeviceModel] = STATED_DEVICES, engine: Engine = "numpy"
) -> tuple[PointCost, ...]:
    """Lookups, and the disk in order, at points that are read through 1, 2, 4, 8, ... and all layers.

    Raises:
        FormatError, ChainError: the chain is not sound.
    """
    chain.require_sound()
    total = len(chain.layers)
    # The last power of two is left out where it is next to all layers anyway.
    depths = sorted({total, *(1 << power for power in range(9) if 5 << power < 4 * total)})
    return tuple(_cost(chain, depth, devices, engine) for depth in depths)


def _cost(chain: Chain, depth: int, devices: Sequence[DeviceModel], engine: Engine) -> PointCost:
    layer = len(chain.layers) - depth
    images = chain.images[layer:]
    size = images[0].geometry.virtual_size
    cost = LookupCost(depth)
    cost.begin(np.array([size], np.int64))
    # [i]: bytes of data for which a walk asks i layers.
    asked = np.zeros(depth + 1, np.int64)
    for runs in resolve(images, 0, size, engine=engine):
        data = runs.layer >= 0
        np.add.at(asked, runs.probes[data].astype(np.int64), runs.length[data])
        cost.add(_rows(runs))
    io = cost.io()
    return PointCost(
        layer=layer,
        depth=depth,
        probes=_probes(asked),
        bytes_by_probes=tuple(asked[1:].tolist()),
        in_order=tuple(device_figures(device, io) for device in devices),
    )


def _probes(asked: np.ndarray[Any, np.dtype[np.int64]]) -> Probes:
    """Mean, median, 99th percentile and maximum of numbers of layers, ``asked[i]`` times ``i``."""
    total = int(asked.sum())
    if total == 0:
        return Probes(0.0, 0, 0, 0)
    ranks = [-(-total * percent // 100) for percent in (50, 99, 100)]
    p50, p99, most = np.searchsorted(np.cumsum(asked), ranks).tolist()
    weighted = sum(number * size for number, size in enumerate(asked.tolist()))
    return Probes(weighted / total, p50, p99, most)


def _rows(runs: Resolved) -> Rows:
    """The runs as parts of one long read."""
    nothing = np.zeros(len(runs.offset), np.int64)
    return Rows(
        read=nothing,
        offset=runs.offset,
        length=runs.length,
        layer=runs.layer,
        file_offset=runs.file_offset,
        probes=runs.probes,
        goes_on=nothing.astype(np.bool_),
    )
