"""Recorded workloads: each format from its sample with every number, and from lines that break its rules."""

from __future__ import annotations

import os
import pickle
import random
import re
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vhdtool.errors import FileMissingError, TraceError, VhdtoolError
from vhdtool.simulate.dialects import EVENTS
from vhdtool.simulate.traces import FORMATS, LINE_MAX, Format, Trace, TraceCounts, open_trace
from vhdtool.simulate.workloads import Workload

SAMPLES = Path(__file__).resolve().parent.parent.parent / "fixtures" / "traces"

V3 = "fio version 3 iolog\n0 /dev/sda add\n5 /dev/sda open\n"
V2 = "fio version 2 iolog\n/dev/sda add\n/dev/sda open\n"
Requests = list[tuple[int, int]]


def taken(trace: Trace, **options: int) -> Requests:
    """Offsets and lengths of a whole pass."""
    return [
        (int(offset), int(length))
        for batch in trace.batches(**options)
        for offset, length in zip(batch.offset, batch.length, strict=True)
    ]


def event(
    action: str = "Q", rwbs: str = "R", sector: int = 2048, sectors: int = 8, device: str = "8,0"
) -> str:
    """A line of blkparse, as its default format prints it."""
    end = "[0]" if action == "C" else "[cp (slow disk)]"
    return f"  {device}    0        2     0.000000999   812  {action} {rwbs:>3s} {sector} + {sectors} {end}\n"


class Written:
    """Writes traces into a folder and opens them."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "trace.txt"

    def __call__(self, content: str | bytes, format: Format = "auto", **options: Any) -> Trace:  # noqa: A002
        self.path.write_bytes(content.encode() if isinstance(content, str) else content)
        return open_trace(self.path, format, **options)

    def error(self, content: str | bytes, format: Format = "auto", **options: Any) -> TraceError:  # noqa: A002
        with pytest.raises(TraceError) as caught:
            taken(self(content, format, **options))
        assert caught.value.exit_code == 65
        assert str(caught.value).isprintable()
        return caught.value


@pytest.fixture
def written(tmp_path: Path) -> Written:
    return Written(tmp_path)


# The samples, every number of them


def test_the_sample_of_fio_version_3() -> None:
    trace = open_trace(SAMPLES / "fio-v3.log", virtual_size=1 << 20)

    assert taken(trace) == [
        (883712, 12800),
        (492544, 2560),
        (421376, 6144),
        (880640, 3072),
        (398848, 13824),
        (370688, 3584),
        (956928, 14848),
        (896512, 5120),
        (682496, 13824),
        (973312, 512),
        (258560, 11264),
    ]
    assert trace.counts == TraceCounts(taken=11, skipped_writes=3)
    assert trace.describe() == "trace: reads in fio-v3.log (fio iolog version 3)"
    assert taken(open_trace(SAMPLES / "fio-v3.log", ops="write")) == [
        (62976, 1024),
        (776192, 3584),
        (69632, 14336),
    ]


def test_the_sample_of_fio_version_2() -> None:
    trace = open_trace(SAMPLES / "fio-v2.log")

    assert taken(trace) == [(0, 4096), (1048576, 65536), (512, 512)]
    # One write; a wait, a sync, a trim and a datasync.
    assert trace.counts == TraceCounts(taken=3, skipped_writes=1, skipped_others=4)
    assert trace.skipped_writes == 1
    assert trace.dialect.title == "fio iolog version 2"


def test_the_sample_of_blkparse() -> None:
    trace = open_trace(SAMPLES / "blkparse.txt")

    # Q of sectors 2048 + 8, 2056 + 256, 2312 + 8 and 16777208 + 8.
    assert taken(trace) == [(1048576, 4096), (1052672, 131072), (1183744, 4096), (8589930496, 4096)]
    # A write of 223490 + 8 and a flush without sectors; a discard of 409600 + 128.
    assert trace.counts == TraceCounts(taken=4, skipped_writes=1, skipped_others=2)
    assert trace.describe() == "trace: reads in blkparse.txt (blkparse, Q events)"


@pytest.mark.parametrize("name", ["D", "C"])
def test_the_sample_of_blkparse_by_what_the_driver_saw(name: Any) -> None:
    trace = open_trace(SAMPLES / "blkparse.txt", event=name)

    # 2056 + 264 is what two reads were merged to.
    assert taken(trace) == [(1048576, 4096), (1052672, 135168), (8589930496, 4096)]
    # The write, and a packet command that is about no sectors.
    assert trace.counts == TraceCounts(taken=3, skipped_writes=1, skipped_others=1)


def test_the_sample_of_msr_cambridge() -> None:
    trace = open_trace(SAMPLES / "msr.csv")

    assert taken(trace) == [(7014609920, 24576), (2436440064, 4096), (512, 1024)]
    assert trace.counts == TraceCounts(taken=3, skipped_writes=2)
    assert trace.dialect.name == "msr"
    assert taken(open_trace(SAMPLES / "msr.csv", device="web_1", ops="all")) == [
        (7014609920, 24576),
        (1317441536, 8192),
        (2436440064, 4096),
        (1317449728, 16384),
        (512, 1024),
    ]


def test_the_sample_of_plain_csv() -> None:
    trace = open_trace(SAMPLES / "plain.csv")

    assert taken(trace) == [(0, 4096), (1048576, 65536), (12288, 512)]
    assert trace.counts == TraceCounts(taken=3, skipped_writes=1, skipped_others=1)
    assert trace.dialect.title == "CSV"


def test_every_sample_is_listed_with_where_it_comes_from() -> None:
    sources = (SAMPLES.parent / "SOURCES.md").read_text(encoding="utf-8")

    samples = {path.name for path in SAMPLES.iterdir()}
    assert samples == set(re.findall(r"^- `traces/(.+)`: \w+", sources, re.MULTILINE))


@pytest.mark.parametrize("name", ["fio-v2.log", "fio-v3.log", "blkparse.txt", "msr.csv", "plain.csv"])
def test_a_format_that_was_asked_for_reads_the_same(name: str) -> None:
    found = open_trace(SAMPLES / name)
    asked: Any = found.dialect.name

    assert asked in FORMATS
    assert taken(open_trace(SAMPLES / name, asked)) == taken(found)


# What all formats have in common


def test_a_trace_can_be_passed_through_again_and_in_batches_of_any_size() -> None:
    trace = open_trace(SAMPLES / "fio-v3.log")
    workload: Workload = trace
    expected = taken(trace)

    assert [len(batch.offset) for batch in workload.batches()] == [11]
    assert [len(batch.offset) for batch in trace.batches(rows=4)] == [4, 4, 3]
    for rows in (1, 3, 11, 12):
        assert taken(trace, rows=rows) == expected
        assert trace.counts == TraceCounts(taken=11, skipped_writes=3)


def test_batches_are_columns_that_nobody_changes(written: Written) -> None:
    (batch,) = written("0,512\n").batches()

    assert batch.offset.dtype == batch.length.dtype == np.int64
    with pytest.raises(ValueError, match="read-only"):
        batch.offset[0] = 1


def test_a_trace_travels_to_another_process() -> None:
    trace = open_trace(SAMPLES / "blkparse.txt")

    assert taken(pickle.loads(pickle.dumps(trace))) == taken(trace)


@pytest.mark.parametrize(
    "content",
    [
        "0,512\n4096,512",
        "0,512\r\n4096,512\r\n",
        "\n\n0,512\n\n4096,512\n\n",
        "\ufeff0,512\n4096,512\n",
        "\ufeffOffset, Size\r\n0,512\r\n4096,512\r\n",
        "offset,length,op\n0,512,READ\n4096,512,r\n",
        "# a comment\n0,512\n# 1,2\n 4096 ,\t512\n",
        V2 + "/dev/sda read 0 512\n/dev/sda read 4096 512\n/dev/sda close\n",
        "fio version 2 iolog\r\n/dev/sda read 0 512\r\n/dev/sda read 4096 512\r\n",
        V3 + "\n7 /dev/sda read 0 512\n 9  /dev/sda\tread 4096 512\n",
        event(sector=0, sectors=1) + event(sector=8, sectors=1),
        "Input file sda.blktrace.0 added\n"
        + event(sector=0, sectors=1)
        + event(rwbs="RSM", sector=8, sectors=1),
        "Timestamp,Hostname,DiskNumber,Type,Offset,Size,ResponseTime\n1,a,0,Read,0,512,9\n2,a,0,Read,4096,512,9\n",
    ],
)
def test_forms_of_a_trace(written: Written, content: str) -> None:
    assert taken(written(content)) == [(0, 512), (4096, 512)]


def test_requests_of_no_bytes_are_counted_and_left_out(written: Written) -> None:
    trace = written("0,0\n8,4\n9,0,w\n")

    assert taken(trace) == [(8, 4)]
    assert trace.counts == TraceCounts(taken=1, skipped_empty=1, skipped_writes=1)


def test_a_long_trace_takes_the_memory_of_a_short_one(tmp_path: Path) -> None:
    rows = 300_000
    path = tmp_path / "long.csv"
    with path.open("w") as file:
        file.writelines(f"{i * 4096},{512 + i % 7}\n" for i in range(rows))
    trace = open_trace(path)
    tracemalloc.start()
    try:
        total = count = 0
        for batch in trace.batches():
            assert len(batch.offset) <= 1 << 16
            count += len(batch.offset)
            total += int(batch.offset.sum())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert (count, total) == (rows, 4096 * rows * (rows - 1) // 2)
    # 300,000 lines are 4.2 MB, and as lists of numbers 20 MB and more.
    assert peak < 8 << 20


def test_a_pass_that_is_given_up_closes_its_file(written: Written) -> None:
    batches = written("0,512\n4096,512\n").batches(rows=1)
    next(batches)

    batches.close()  # type: ignore[attr-defined]

    written.path.unlink()


@settings(max_examples=40)
@given(data=st.data())
def test_any_requests_are_read_back_from_any_format(data: st.DataObject, tmp_path_factory: Any) -> None:
    sector = st.integers(0, (1 << 54) - (1 << 20) - 1)
    rows = data.draw(st.lists(st.tuples(sector, st.integers(1, 1 << 20)), min_size=1, max_size=50))
    expected = [(offset * 512, length * 512) for offset, length in rows]
    style = data.draw(st.sampled_from(["csv", "v2", "v3", "msr", "blkparse"]))
    line = {
        "csv": "{0},{1}\n",
        "v2": "/dev/sda read {0} {1}\n",
        "v3": "17 /dev/sda read {0} {1}\n",
        "msr": "128166372003061629,usr,0,Read,{0},{1},41286\n",
        "blkparse": "  8,0    0        2     0.000000999   812  Q  RA {2} + {3} [cp]\n",
    }[style]
    header = {"v2": V2, "v3": V3}.get(style, "")
    written = Written(tmp_path_factory.mktemp("trace"))

    trace = written(header + "".join(line.format(o * 512, n * 512, o, n) for o, n in rows))

    assert taken(trace) == expected


# Several devices in one trace


def test_several_files_of_fio_are_an_error_that_names_them(written: Written) -> None:
    content = V3 + "9 /dev/sda read 0 512\n9 /dev/sdb add\n9 /dev/sdb read 512 512\n9 /dev/sdc read 1 1\n"

    error = written.error(content)

    assert "several files" in str(error)
    assert "found /dev/sda, /dev/sdb, /dev/sdc" in str(error)
    assert "(line 6, file)" in str(error)


@pytest.mark.parametrize(
    ("content", "device"),
    [
        (V3 + "9 /dev/sda read 0 512\n9 /dev/sdb read 8192 512\n9 /dev/sdb write 0 1\n", "/dev/sdb"),
        (
            event(sector=1) + event(device="259,10", sector=16, sectors=1) + event(device="259,10", rwbs="W"),
            "259,10",
        ),
        ("1,usr,0,Read,1,2,3\n1,usr,1,Read,8192,512,3\n1,usr,1,Write,8192,512,3\n", "usr_1"),
    ],
)
def test_one_device_of_several_can_be_chosen(written: Written, content: str, device: str) -> None:
    trace = written(content, device=device)

    assert taken(trace) == [(8192, 512)]
    assert trace.counts == TraceCounts(taken=1, skipped_writes=1, other_devices=1)
    assert device in trace.describe()
    assert f"found {', '.join(sorted([device, taken_first(content)]))}, expected one" in str(
        written.error(content)
    )


def taken_first(content: str) -> str:
    return next(name for name in ("/dev/sda", "8,0", "usr_0") if name in content or name == "usr_0")


def test_a_device_that_the_trace_has_not_is_named_with_those_that_it_has(written: Written) -> None:
    error = written.error(event() + event(device="8,16"), device="8,1")

    assert "the trace has no device 8,1" in str(error)
    assert "found 8,0, 8,16" in str(error)


def test_plain_csv_has_no_device_to_choose(written: Written) -> None:
    assert "names no device" in str(written.error("0,512\n", device="sda"))


def test_a_name_of_any_bytes_is_a_name_and_is_shown_escaped(written: Written) -> None:
    content = b"fio version 2 iolog\n/dev/\xff\x1b[31m read 0 512\n"

    assert taken(written(content)) == [(0, 512)]
    assert r"/dev/\xff\x1b[31m" in str(written.error(content + b"/b read 0 512\n"))
    assert taken(written(content + b"/b read 0 512\n", device="/dev/\udcff\x1b[31m")) == [(0, 512)]


# Events of blkparse


def test_without_queue_events_those_of_the_driver_count(written: Written) -> None:
    issued = written(event("D", sector=16) + event("C", sector=16) + event("D", sector=8))
    completed = written(event("C", sector=24) + event("G"))

    assert (issued.dialect.title, completed.dialect.title) == ("blkparse, D events", "blkparse, C events")
    assert taken(completed) == [(12288, 4096)]


def test_queue_events_late_in_a_trace_still_count(written: Written) -> None:
    content = event("C", sector=1) * 10_000 + event("Q", sector=16)

    assert taken(written(content)) == [(8192, 4096)]


def test_the_events_that_count_are_those_of_the_chosen_device(written: Written) -> None:
    trace = written(event("Q") + event("D", device="8,16", sector=16), device="8,16")

    assert taken(trace) == [(8192, 4096)]


def test_what_else_blkparse_prints_is_passed_over(written: Written) -> None:
    others = (
        "  8,0    1        3     0.000001999   812  P   N [cp]\n"
        "  8,0    1        3     0.000001999   812  U   N [cp] 1\n"
        "  8,0    1        3     0.000001999   812 UT   N [cp] 1\n"
        "  8,0    1        3     0.000001999   812  A   R 2048 + 8 <- (8,1) 0\n"
        "  8,0    1        3     0.000001999   812  X   R 2048 / 2052 [cp]\n"
        "  8,0    1        0     0.000001999     0  m   N cfq812 anything + at 8,0 all\n"
        "  8,0    1        3     0.000001999   812  Q FWS [kjournald]\n"
        "  8,0    1        3     0.000001999   812  Q   N 0 + 0 [smartd]\n"
        "  8,0    1        3     0.000001999   812  Q   R 36 (12 00 ..) [smartd]\n"
        "  8,0    1        3     0.000001999   812  Q   R 36 [smartd]\n"
        "\n"
        "cp (slow disk) (812, ...)\n"
        " Allocation wait:        2        \t Allocation wait:         0\n"
        "CPU0 (8,0):\n"
        " Reads Queued:       1,234,    5,678KiB\t Writes Queued:           0,        0KiB\n"
        " PC Read Disp.:          1,        0KiB\t PC Write Disp.:          0,        0KiB\n"
        "Total (8,0):\n"
        "Throughput (R/W): 0KiB/s / 0KiB/s\n"
        "Events (8,0): 24 entries\n"
        "Skips: 0 forward (0 -   0.0%)\n"
    )

    trace = written(
        event("Q", sector=16)
        + others
        + "  8,0    3       11    12.009999999   697  Q   R 8 + 8 (  77) [a b]\n"
    )

    assert taken(trace) == [(8192, 4096), (4096, 4096)]
    assert trace.counts == TraceCounts(taken=2, skipped_others=4)
    assert EVENTS[0] == "Q"


# Requests that leave the disk


def test_a_request_that_leaves_the_disk_is_an_error_with_line_offset_and_size(written: Written) -> None:
    error = written.error("0,4096\n4096,4097\n", virtual_size=8192)

    assert error.finding is not None
    assert error.finding.code == "trace.beyond"
    assert error.finding.location.offset == 7
    assert str(error) == (
        f"a request leaves the disk: {written.path} at 0x7 (line 2, offset): "
        "found offset 0x1000, 4097 bytes, "
        "expected a disk's size of 0x2000 (8192 bytes) at most [trace.beyond]"
    )


def test_a_request_that_ends_with_the_disk_is_inside(written: Written) -> None:
    assert taken(written("4096,4096\n", virtual_size=8192)) == [(4096, 4096)]


def test_requests_beyond_the_disk_can_be_skipped(written: Written) -> None:
    trace = written("0,1\n8192,1\n8191,2\n99999999,1,w\n5,1\n", virtual_size=8192, beyond="skip")

    assert taken(trace) == [(0, 1), (5, 1)]
    assert trace.counts == TraceCounts(taken=2, skipped_beyond=2, skipped_writes=1)


def test_requests_beyond_the_disk_can_be_wrapped(written: Written) -> None:
    # 3 * 8192 + 5 lies at 5; what then passes the end is cut off.
    trace = written("24581,100\n8000,512\n0,99999\n8192,1\n1,1\n", virtual_size=8192, beyond="wrap")

    assert taken(trace) == [(5, 100), (8000, 192), (0, 8192), (0, 1), (1, 1)]
    assert trace.counts == TraceCounts(taken=5, wrapped=4)


@pytest.mark.parametrize(
    "options", [{"beyond": "skip"}, {"beyond": "wrap"}, {"virtual_size": 0}, {"virtual_size": 1 << 63}]
)
def test_a_disk_without_size_is_our_callers_mistake(written: Written, options: Any) -> None:
    with pytest.raises(ValueError, match="disk"):
        written("0,1\n", **options)


def test_a_trace_without_anything_asked_for_says_what_it_has(written: Written) -> None:
    error = written.error("0,1,w\n0,1,w\n0,1,trim\n0,0,r\n9000,1\n", virtual_size=8192, beyond="skip")

    assert "found 0 reads and 2 writes not asked for, 1 beyond the disk, 2 others" in str(error)
    assert "1 reads and 0 writes not asked for" in str(written.error("0,1\n", ops="write"))


# Lines that break the rules


@pytest.mark.parametrize(
    ("content", "words"),
    [
        # fio
        (V2 + "/dev/sda read 0\n", ("line 4", "found 3 fields", "filename action [offset length]")),
        (V2 + "/dev/sda read 0 512 8\n", ("line 4", "found 5 fields")),
        (V2 + "/dev/sda\n", ("line 4", "found 1 fields")),
        (V2 + "/dev/sda raed 0 512\n", ("(line 4, action)", "found raed", "read, sync")),
        (V2 + "/dev/sda unlink\n", ("(line 4, action)", "found unlink", "add, close, open")),
        (V2 + "/dev/sda read -512 512\n", ("(line 4, offset)", "found -512", "decimal digits")),
        (V2 + "/dev/sda read 0 4k\n", ("(line 4, length)", "found 4k")),
        (V2 + "/dev/sda read 0x200 512\n", ("(line 4, offset)", "found 0x200")),
        (V3 + "/dev/sda read 0 512\n", ("(line 4, timestamp)", "found /dev/sda")),
        (V3 + "7 /dev/sda read 0\n", ("line 4", "found 4 fields", "timestamp filename action")),
        (V3 + "7\n", ("line 4", "found 1 fields", "timestamp filename action")),
        (V3 + "7 /dev/sda wait 100\n", ("line 4", "found 4 fields")),
        (V3 + "7 /dev/sda read 0 512\nfio version 3 iolog\n", ("(line 5, timestamp)", "found fio")),
        ("fio version 4 iolog\n", ("line 1", "version 4", "fio version 2 iolog")),
        # blkparse
        (event() + "  8,0    0        2     0.000000999   812\n", ("line 2", "found 5 fields")),
        (event() + event("Z"), ("(line 2, action)", "found Z")),
        (event() + event(rwbs="Y"), ("(line 2, rwbs)", "found Y")),
        (event() + event(rwbs="R1"), ("(line 2, rwbs)", "found R1")),
        (event() + event().replace("2048", "20x8"), ("(line 2, sector)", "found 20x8")),
        (event() + event().replace("+ 8", "+ -8"), ("(line 2, sectors)", "found -8")),
        (event() + event().replace("+", "-"), ("(line 2, sector)", "found 2048 - 8")),
        (event() + event()[:-18], ("(line 2, sector)", "found 2048 + 8")),
        (event() + event().replace(" 812 ", " 8x2 "), ("(line 2, cpu, sequence, time, pid)", "8x2")),
        (event() + event().replace("0.0", "0,0"), ("(line 2, cpu, sequence, time, pid)", "0,000000999")),
        (event() + event(device="sda"), ("(line 2, device)", "found sda", "major,minor")),
        (event() + "nonsense\n", ("(line 2, device)", "found nonsense")),
        # MSR
        ("1,a,0,Read,0,512,3\n1,a,0,Read,0,512\n", ("line 2", "found 6 fields", "Timestamp,Hostname")),
        ("1,a,0,Read,0,512,3\n1,a,0,Reed,0,512,3\n", ("(line 2, Type)", "found Reed", "Read, Write")),
        ("1,a,0,Read,0,512,3\n1,a,0,Read,1.5,512,3\n", ("(line 2, Offset)", "found 1.5")),
        ("1,a,0,Read,0,512,3\n1,a,0,Read,0,,3\n", ("(line 2, Size)", "found nothing")),
        ("1,a,0,Read,0,512,3\n1,a,x,Read,0,512,3\n", ("(line 2, DiskNumber)", "found x")),
        # Plain CSV
        ("0,512\n512\n", ("line 2", "found 1 fields", "offset,length[,op]")),
        ("0,512\n1,2,r,4\n", ("line 2", "found 4 fields")),
        ("0,512\n1,2,q\n", ("(line 2, op)", "found q")),
        ("0,512\n1;2\n", ("line 2", "found 1 fields")),
        ("0,512\n,2\n", ("(line 2, offset)", "found nothing")),
        ("0,512\n1_000,2\n", ("(line 2, offset)", "found 1_000")),
        ("0,512\n+1,2\n", ("(line 2, offset)", "found +1")),
        ("0,512\n1,1e3\n", ("(line 2, length)", "found 1e3")),
        ("offset,length\n0,512\noffset,length\n", ("(line 3, offset)", "found offset")),
        ("0,512\n\u0661,2\n", ("(line 2, offset)", "found \u0661")),
        (b"0,512\n\xff\xfe,2\n", ("(line 2, offset)", r"found \xff\xfe")),
        (b"0,512\n\x1b[31m,2\n", ("(line 2, offset)", r"found \x1b[31m")),
        (
            "0,512\n" + "9" * 5000 + ",2\n",
            ("(line 2, offset)", "(5000 bytes)", "at most 9223372036854775807"),
        ),
        ("0,512\n 9" + "9" * 30 + " ,2\n", ("(line 2, offset)", "at most 9223372036854775807")),
        ("0,512\n9223372036854775807,1\n", ("(line 2, offset)", "no disk is so large")),
        ("0,512\n" + "1" * (LINE_MAX + 1) + "\n", ("line 2", "too long", "at most 65536 bytes")),
        (b"0,512\n1,2\n3,\x004\n", ("line 3", "no text", "a NUL byte")),
        ("0,512\n1,2\n".encode("utf-16-le"), ("line 1", "no text", "a NUL byte")),
    ],
)
def test_a_line_that_breaks_its_formats_rules_is_named(
    written: Written, content: str | bytes, words: tuple[str, ...]
) -> None:
    error = written.error(content)

    for word in words:
        assert word in str(error)


def test_the_place_of_a_line_is_right_wherever_it_is(written: Written) -> None:
    rng = random.Random(4)
    lines = [b"%d,%d\n" % (rng.randrange(1 << 40), 512) for _ in range(60_000)]
    for bad in (0, 1, 20_000, 59_999):
        changed = [*lines[:bad], b"x,1\n", *lines[bad:]]

        error = written.error(b"\xef\xbb\xbf" + b"".join(changed), "csv")

        assert error.finding is not None
        assert error.finding.location.field == f"line {bad + 1}, offset"
        assert error.finding.location.offset == 3 + sum(map(len, lines[:bad]))


def test_a_line_as_long_as_can_be_is_read_wherever_it_lies(written: Written) -> None:
    for before in (0, 250_000, 262_144 - 30):
        padded = b"#" * 100 + b"\n" + b"0,1\n" * (before // 4) + b" " * (LINE_MAX - 3) + b"7,9\n5,5\n"

        assert taken(written(padded))[-2:] == [(7, 9), (5, 5)]


def test_a_line_without_end_is_refused_before_it_is_held(tmp_path: Path) -> None:
    path = tmp_path / "endless"
    with path.open("wb") as file:
        file.write(b"0,512\n")
        for _ in range(64):
            file.write(b"1" * (1 << 20))
    tracemalloc.start()
    try:
        with pytest.raises(TraceError, match="too long"):
            taken(open_trace(path))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < 4 << 20


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "the trace is empty"),
        (b"\n \n\n", "the trace is empty"),
        (b"hello world\n", "no trace of a known format"),
        (b"a,b\n1,2\n", "no trace of a known format"),
        (b"\x1f\x8b\x08\x00\x00", "a gzip file: unpack it first"),
        (b"\x07taeb\x00\x00\x00", "print it with blkparse"),
        (b"PK\x03\x04....", "a ZIP file"),
    ],
)
def test_a_file_that_is_no_trace_is_refused_without_a_byte_of_it(
    written: Written, content: bytes, word: str
) -> None:
    error = written.error(content)

    assert word in str(error)
    assert "hello" not in str(error)


def test_a_format_that_was_asked_for_says_what_it_misses(written: Written) -> None:
    assert "no iolog of a known version" in str(written.error("0,512\n", "fio"))
    assert "found 1 fields" in str(written.error("0 512\n", "csv"))
    assert "found 2 fields" in str(written.error("0,512\n", "msr"))
    assert "(line 1, device)" in str(written.error("0 512\n", "blkparse"))
    assert "(line 1, offset)" in str(written.error("start,512\n", "csv"))


def test_what_is_no_file_is_refused_without_being_opened(tmp_path: Path) -> None:
    with pytest.raises(FileMissingError):
        open_trace(tmp_path / "none")
    with pytest.raises(TraceError, match=r"this cannot be a trace: .* found a directory"):
        open_trace(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "fifo")
        with pytest.raises(TraceError, match="found a FIFO"):
            open_trace(tmp_path / "fifo")


@settings(max_examples=150)
@given(data=st.data())
def test_any_change_to_a_sample_reads_or_is_an_error_of_ours(
    data: st.DataObject, tmp_path_factory: Any
) -> None:
    sample = data.draw(st.sampled_from(sorted(SAMPLES.iterdir()))).read_bytes()
    changed = bytearray(sample)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(changed)))
        changed[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=6))
    written = Written(tmp_path_factory.mktemp("changed"))
    try:
        requests = taken(written(bytes(changed), virtual_size=1 << 40, ops="all"))
    except VhdtoolError as error:
        shown, requests = str(error), []
    else:
        shown = ""
    assert not shown or shown.isprintable()
    assert all(offset >= 0 and length > 0 and offset + length <= 1 << 40 for offset, length in requests)
