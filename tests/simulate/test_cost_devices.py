"""Devices: their figures as text, and the time that a workload takes on one."""

from __future__ import annotations

import math

import pytest

from vhdtool.simulate.devices import STATED_DEVICES, DeviceModel, Io, device_figures, parse_device


@pytest.mark.parametrize("device", STATED_DEVICES, ids=lambda device: device.name)
def test_a_stated_device_goes_by_its_name(device: DeviceModel) -> None:
    assert parse_device(device.name) is device


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mine:seek=8ms,latency=4ms,bandwidth=180MB", DeviceModel("mine", 8e-3, 4e-3, 180e6)),
        ("a-1.b:bandwidth=1GiB", DeviceModel("a-1.b", 0.0, 0.0, float(1 << 30))),
        ("x:latency=80us,bandwidth=2.5 GB/s", DeviceModel("x", 0.0, 80e-6, 2.5e9)),
        ("x:bandwidth=512,seek=0.5s", DeviceModel("x", 0.5, 0.0, 512.0)),
        ("x:bandwidth=64kb,latency=100ns", DeviceModel("x", 0.0, 100e-9, 64e3)),
    ],
)
def test_own_figures_are_read_with_their_units(text: str, expected: DeviceModel) -> None:
    device = parse_device(text)

    assert device.name == expected.name
    assert device.seek_time == pytest.approx(expected.seek_time)
    assert device.latency == pytest.approx(expected.latency)
    assert device.bandwidth == pytest.approx(expected.bandwidth)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("floppy", "none of hdd, sata-ssd, nvme"),
        ("", "none of hdd"),
        (":bandwidth=1MB", "no name"),
        ("a b:bandwidth=1MB", "no name"),
        ("\x1b[31m:bandwidth=1MB", "no name"),
        ("x:", "not one of seek"),
        ("x:speed=1MB", "not one of seek"),
        ("x:bandwidth=1MB,bandwidth=2MB", "each once"),
        ("x:seek=8ms", "no bandwidth"),
        ("x:bandwidth=0MB", "no bandwidth of more than 0"),
        ("x:bandwidth=MB", "no number"),
        ("x:bandwidth=-1MB", "no number"),
        ("x:bandwidth=1ms", "no number"),
        ("x:seek=8,bandwidth=1MB", "no number"),
        ("x:seek=nan,bandwidth=1MB", "no number"),
        ("x:bandwidth=" + "9" * 400, "no number"),
    ],
)
def test_what_is_no_device_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_device(text)


@pytest.mark.parametrize(
    "figures", [(-1.0, 0.0, 1.0), (0.0, math.inf, 1.0), (0.0, 0.0, 0.0), (0.0, 0.0, math.nan)]
)
def test_a_device_with_impossible_figures_cannot_be_made(figures: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match="not finite"):
        DeviceModel("x", *figures)


def test_time_is_jumps_and_bytes() -> None:
    # 100 jumps of 10 ms and 1 MB at 1 MB/s: 2 s; on one file 50 jumps: 1.5 s.
    device = DeviceModel("x", 6e-3, 4e-3, 1e6)

    figures = device_figures(device, Io(reads=200, bytes=1_000_000, jumps=100, jumps_flat=50))

    assert figures.iops == pytest.approx(100)
    assert figures.mb_per_s == pytest.approx(0.5)
    assert figures.relative_to_flat == pytest.approx(0.75)


def test_without_io_nothing_limits() -> None:
    figures = device_figures(STATED_DEVICES[0], Io(reads=0, bytes=0, jumps=0, jumps_flat=0))

    assert (figures.iops, figures.mb_per_s, figures.relative_to_flat) == (None, None, 1.0)
