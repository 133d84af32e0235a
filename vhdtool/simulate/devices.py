"""What a device would make of a workload: a few figures of it, and a time for each piece of I/O.

The model is a disk with one head and one request at a time (queue depth 1), no cache, and metadata in
memory.  A piece of I/O is a run of data of one layer's file.  One that begins where the piece before it
ended, in the same file, goes on at the device's bandwidth; any other costs a seek and the latency first.
Zeros that no file holds cost nothing and count for nothing: a disk that is mostly holes would be read
faster than any device can, and rates are those of what the device is asked for.  The same reads on one
sparse file with the same disk in it are what everything is compared with.

The figures of the models are typical ones, rounded:

========  =======  =======  ==========  ==================================================================
name      seek     latency  bandwidth   after
========  =======  =======  ==========  ==================================================================
hdd       8.5 ms   4.17 ms  180 MB/s    data sheets of 7200 rpm disks; half a turn takes 4.17 ms
sata-ssd  0        0.1 ms   500 MB/s    data sheets: about 10,000 random 4 KiB reads/s at queue depth 1;
                                        SATA's 6 Gbit/s end near 550 MB/s
nvme      0        0.05 ms  3000 MB/s   data sheets: 15,000 to 22,000 at queue depth 1, PCIe 3.0 x4
========  =======  =======  ==========  ==================================================================
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Final

from vhdtool.simulate.figures import DeviceFigures


@dataclass(frozen=True, slots=True)
class DeviceModel:
    """A device in a few figures.

    Attributes:
        seek_time, latency: seconds before a piece of I/O that does not go on where the last one ended.
        bandwidth: bytes a second; > 0.
    """

    name: str
    seek_time: float
    latency: float
    bandwidth: float

    def __post_init__(self) -> None:
        times = (self.seek_time, self.latency)
        if not all(math.isfinite(time) and time >= 0 for time in times):
            raise ValueError(f"times of {self.name!r} are not finite and at least 0")
        if not (math.isfinite(self.bandwidth) and self.bandwidth > 0):
            raise ValueError(f"bandwidth of {self.name!r} is not finite and more than 0")

    def seconds(self, jumps: int, size: int) -> float:
        """The time for ``size`` bytes in pieces of which ``jumps`` do not go on where the last ended."""
        return jumps * (self.seek_time + self.latency) + size / self.bandwidth


STATED_DEVICES: Final = (
    DeviceModel("hdd", 8.5e-3, 4.17e-3, 180e6),
    DeviceModel("sata-ssd", 0.0, 100e-6, 500e6),
    DeviceModel("nvme", 0.0, 50e-6, 3000e6),
)


@dataclass(frozen=True, slots=True)
class Io:
    """The I/O of a workload: what a device's time depends on.

    Attributes:
        reads: those of which some file holds anything.
        bytes: what files hold of them.
        jumps: pieces that do not begin where the piece before ended, in the same file.
        jumps_flat: the same on one sparse file with the whole disk in it.
    """

    reads: int
    bytes: int
    jumps: int
    jumps_flat: int


def device_figures(device: DeviceModel, io: Io) -> DeviceFigures:
    """What ``device`` makes of ``io``; rates are None when nothing had to be read."""
    seconds = device.seconds(io.jumps, io.bytes)
    flat = device.seconds(io.jumps_flat, io.bytes)
    if seconds == 0:
        return DeviceFigures(device.name, None, None, 1.0)
    return DeviceFigures(device.name, io.reads / seconds, io.bytes / seconds / 1e6, flat / seconds)


_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}")
_VALUE: Final = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,12})?) ?([A-Za-zµ]*)(?:/s)?")
_SECONDS: Final = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_BYTES: Final = {
    "": 1.0,
    "B": 1.0,
    "KB": 1e3,
    "MB": 1e6,
    "GB": 1e9,
    "KIB": float(1 << 10),
    "MIB": float(1 << 20),
    "GIB": float(1 << 30),
}


def parse_device(text: str) -> DeviceModel:
    """``hdd``, ``sata-ssd``, ``nvme``, or ``NAME:seek=8ms,latency=4ms,bandwidth=180MB``.

    Times default to 0; bandwidth must be said, a second is meant (``MB`` is 10**6, ``MiB`` 2**20 bytes).

    Raises:
        ValueError: it is none of these; the message says what is wrong.
    """
    name, colon, rest = text.partition(":")
    stated = {device.name: device for device in STATED_DEVICES}
    if not colon:
        if name not in stated:
            raise ValueError(f"{name!r} is none of {', '.join(stated)}, and says no figures of its own")
        return stated[name]
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name for a device: letters, digits, dots and dashes, at most 32")
    values: dict[str, float] = {}
    for part in rest.split(","):
        key, _, value = part.partition("=")
        units = {"seek": _SECONDS, "latency": _SECONDS, "bandwidth": _BYTES}.get(key.strip())
        if units is None or key.strip() in values:
            raise ValueError(f"{part!r} is not one of seek=TIME, latency=TIME, bandwidth=SIZE, each once")
        values[key.strip()] = _number(part, value.strip(), units)
    if not values.get("bandwidth"):
        raise ValueError(f"{text!r} says no bandwidth of more than 0")
    return DeviceModel(name, values.get("seek", 0.0), values.get("latency", 0.0), values["bandwidth"])


def _number(part: str, value: str, units: dict[str, float]) -> float:
    match = _VALUE.fullmatch(value)
    unit = None if match is None else units.get(match[2] if match[2] in units else match[2].upper())
    if match is None or unit is None:
        raise ValueError(f"{part!r} has no number with one of the units {', '.join(filter(None, units))}")
    return float(match[1]) * unit
