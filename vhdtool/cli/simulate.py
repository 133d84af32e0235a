"""``vhdtool simulate LEAF``."""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import click
from click.core import ParameterSource

from vhdtool.cli.faults import say
from vhdtool.cli.options import (
    FILE,
    SIZE,
    Access,
    chain_options,
    engine_option,
    force_option,
    json_option,
)
from vhdtool.cli.output import open_sound, paint, print_json, print_text
from vhdtool.cli.picture import begun_picture, made_now, picture_option, suffix_of
from vhdtool.errors import printable
from vhdtool.report.text import count

if TYPE_CHECKING:
    from vhdtool.chain.chain import Chain
    from vhdtool.chain.engine import Engine
    from vhdtool.simulate.devices import DeviceModel
    from vhdtool.simulate.figures import MergePlan, Simulation, WhatIf
    from vhdtool.simulate.measure import Mode
    from vhdtool.simulate.workloads import Area, Workload

    DeviceParam = click.ParamType[DeviceModel]
    MergeParam = click.ParamType[tuple[int, int]]
else:
    DeviceParam = MergeParam = click.ParamType

# Options that only one made-up workload has.
_BELONGS_TO: Final = {"theta": "zipf", "hot_reads": "hotspot", "hot_area": "hotspot"}
# Options that made-up workloads have and recorded ones do not, and the other way round.
_MADE_UP: Final = ("kind", "theta", "hot_reads", "hot_area", "reads", "size", "seed", "area")
_RECORDED: Final = ("trace_format", "trace_ops", "trace_device", "trace_event", "trace_beyond")


class DeviceType(DeviceParam):
    """``hdd``, ``sata-ssd``, ``nvme``, or ``NAME:seek=8ms,latency=4ms,bandwidth=180MB``."""

    name = "device"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> DeviceModel:
        """Text to a device."""
        from vhdtool.simulate.devices import DeviceModel, parse_device

        if isinstance(value, DeviceModel):
            return value
        try:
            return parse_device(str(value))
        except ValueError as error:
            self.fail(printable(str(error)), param, ctx)


class SecondsType(click.FloatRange):
    """A range of numbers that NaN, which is below and above nothing, is not in."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Text to a number."""
        number = float(super().convert(value, param, ctx))
        if math.isnan(number):
            self.fail(f"{value!r} is not a number of seconds", param, ctx)
        return number


class MergeType(MergeParam):
    """``A..B``: the first and the last of the layers to be merged."""

    name = "merge"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        """Text to two numbers."""
        from vhdtool.simulate.whatif import parse_merge

        if isinstance(value, tuple):
            return value
        try:
            return parse_merge(str(value))
        except ValueError as error:
            self.fail(printable(str(error)), param, ctx)


@dataclass(frozen=True, slots=True)
class WorkloadOptions:
    """What the user wants to be read."""

    kind: Literal["sequential", "random", "zipf", "hotspot"]
    theta: float
    hot_reads: float
    hot_area: float
    reads: int
    size: int
    seed: int
    area: Literal["disk", "allocated"]
    trace: Path | None
    trace_format: Literal["auto", "fio", "blkparse", "msr", "csv"]
    trace_ops: Literal["read", "write", "all"]
    trace_device: str | None
    trace_event: Literal["Q", "D", "C"] | None
    trace_beyond: Literal["error", "skip", "wrap"]

    def open(self, chain: Chain) -> Workload:
        """The workload for the chain's disk.

        Raises:
            WorkloadError, TraceError, InputError: there is no such workload.
        """
        from vhdtool.simulate.traces import open_trace
        from vhdtool.simulate.workloads import synthetic

        if self.trace is not None:
            return open_trace(
                self.trace,
                self.trace_format,
                virtual_size=chain.virtual_size,
                ops=self.trace_ops,
                device=self.trace_device,
                event=self.trace_event,
                beyond=self.trace_beyond,
            )
        return synthetic(
            self.kind,
            self._area(chain),
            reads=self.reads,
            seed=self.seed,
            theta=self.theta,
            hot_reads=self.hot_reads,
            hot_area=self.hot_area,
        )

    def _area(self, chain: Chain) -> Area:
        from vhdtool.simulate.cost import allocated_ranges
        from vhdtool.simulate.workloads import Area

        # What is said of the reads is to be true of them.
        size = min(self.size, chain.virtual_size)
        if self.area == "disk":
            return Area.whole(chain.virtual_size, size)
        return Area.allocated(chain.virtual_size, size, *allocated_ranges(chain))


def _workload_options(command: Any) -> Any:
    options = (
        click.option(
            "--workload",
            "kind",
            type=click.Choice(["sequential", "random", "zipf", "hotspot"]),
            default="random",
            show_default=True,
            help="What is read next.",
        ),
        click.option("--theta", type=float, default=0.99, show_default=True, help="Of zipf: how uneven."),
        click.option(
            "--hot-reads", type=float, default=0.9, show_default=True, help="Of hotspot: share of reads."
        ),
        click.option(
            "--hot-area", type=float, default=0.1, show_default=True, help="Of hotspot: share of the area."
        ),
        click.option(
            "--reads", type=click.IntRange(min=1), default=100_000, show_default=True, help="How many."
        ),
        click.option("--size", type=SIZE, default="4KiB", show_default=True, help="Of each read."),
        click.option(
            "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the draws."
        ),
        click.option(
            "--area",
            type=click.Choice(["disk", "allocated"]),
            default="disk",
            show_default=True,
            help="Read all of the disk, or what some layer holds.",
        ),
        click.option("--trace", type=FILE, metavar="FILE", help="Replay a recorded workload instead."),
        click.option(
            "--trace-format",
            type=click.Choice(["auto", "fio", "blkparse", "msr", "csv"]),
            default="auto",
            show_default=True,
            help="What FILE is: fio iolog, blkparse text, MSR Cambridge CSV, plain CSV.",
        ),
        click.option(
            "--trace-ops",
            type=click.Choice(["read", "write", "all"]),
            default="read",
            show_default=True,
            help="Which requests of the trace to look up.",
        ),
        click.option("--trace-device", metavar="NAME", help="Which of the devices in the trace."),
        click.option(
            "--trace-event",
            type=click.Choice(["Q", "D", "C"]),
            help="Of blkparse: the action that counts as a request; the first there is, without it.",
        ),
        click.option(
            "--trace-beyond",
            type=click.Choice(["error", "skip", "wrap"]),
            default="error",
            show_default=True,
            help="What to do with requests beyond the disk's end.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.command("simulate")
@click.argument("leaf", type=FILE)
@_workload_options
@click.option(
    "--device",
    "devices",
    multiple=True,
    type=DeviceType(),
    metavar="DEVICE",
    help="hdd, sata-ssd, nvme, or NAME:seek=8ms,latency=4ms,bandwidth=180MB. Repeatable.",
)
@engine_option
@click.option(
    "--measure",
    type=click.Choice(["cache", "direct"]),
    is_flag=False,
    flag_value="cache",
    help="Do the reads for real too: through the page cache, or with O_DIRECT.",
)
@click.option(
    "--seconds",
    type=SecondsType(min=0, min_open=True, max=86400),
    default=10.0,
    show_default=True,
    help="How long --measure reads at most.",
)
@click.option(
    "--merge", type=MergeType(), metavar="A..B", help="Show what merging layers A to B would change."
)
@click.option("--plan", "budget", type=SIZE, help="Propose the best merges for so many bytes of copying.")
@picture_option("the simulation")
@force_option
@chain_options
@json_option
def command(
    leaf: Path,
    devices: tuple[DeviceModel, ...],
    engine: Engine,
    measure: Mode | None,
    seconds: float,
    merge: tuple[int, int] | None,
    budget: int | None,
    picture: Path | None,
    force: bool,
    access: Access,
    as_json: bool,
    **workload: Any,
) -> None:
    """Count what the lookups of a workload cost, and predict what devices make of it.

    No payload is read without --measure.  What is simulated is called so.
    """
    from vhdtool.simulate.cost import simulate
    from vhdtool.simulate.devices import STATED_DEVICES

    ctx = click.get_current_context()
    _require_fitting(ctx, workload)
    if measure is None and ctx.get_parameter_source("seconds") is ParameterSource.COMMANDLINE:
        raise click.UsageError("--seconds says nothing without --measure")
    with ExitStack() as stack:
        chain = stack.enter_context(open_sound(leaf, access))
        if merge is not None and merge[1] >= len(chain.layers):
            raise click.UsageError(
                f"--merge: there is no layer {merge[1]}; the base is {len(chain.layers) - 1}"
            )
        write = None
        if picture is not None:
            inputs = [file.path for file in chain.files()]
            if workload["trace"] is not None:
                inputs.append(workload["trace"])
            write = stack.enter_context(begun_picture(picture, force=force, inputs=inputs))
        reads = WorkloadOptions(**workload).open(chain)
        options: dict[str, Any] = {"devices": devices or STATED_DEVICES, "engine": engine}
        simulation = simulate(chain, reads, measure=measure, seconds=seconds, **options)
        what_if = plan = None
        if merge is not None:
            from vhdtool.simulate.whatif import what_if as ask_what_if

            what_if = ask_what_if(chain, *merge, reads, before=simulation, **options)
        if budget is not None:
            from vhdtool.simulate.whatif import plan_merges

            plan = plan_merges(chain, simulation, budget)
        _say_left_out(reads)
        # Whichever of the two fails, the other one is there.
        try:
            if picture is not None and write is not None:
                from vhdtool.report.pictures import render_simulation_page

                suffix = suffix_of(picture)
                write(render_simulation_page(what_if or simulation, made_now(ctx), suffix=suffix, plan=plan))
        finally:
            _print(simulation, what_if, plan, as_json=as_json)


def _require_fitting(ctx: click.Context, workload: dict[str, Any]) -> None:
    """Refuse options that the chosen workload does not have: a slip must not pass in silence."""
    given = {name for name in workload if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE}
    trace = workload["trace"] is not None
    stray = given.intersection(_MADE_UP if trace else _RECORDED)
    if not trace:
        stray |= {name for name in given if _BELONGS_TO.get(name, workload["kind"]) != workload["kind"]}
    for parameter in ctx.command.params:
        if parameter.name in stray:
            what = "--trace" if trace else f"--workload {workload['kind']}"
            raise click.UsageError(f"{parameter.opts[0]} says nothing with {what}")


def _say_left_out(workload: Workload) -> None:
    """What of a trace was not looked up: who is not told takes the rest for all of it."""
    from vhdtool.simulate.traces import Trace

    if not isinstance(workload, Trace):
        return
    counts = workload.counts
    left_out = (
        (counts.skipped_reads, "read", ""),
        (counts.skipped_writes, "write", ""),
        (counts.skipped_others, "request", " that neither reads nor writes"),
        (counts.skipped_empty, "request", " of no bytes"),
        (counts.skipped_beyond, "request", " beyond the disk's end"),
        (counts.other_devices, "request", " of other devices"),
    )
    words = [f"{count(number, noun)}{which}" for number, noun, which in left_out if number]
    if words:
        say(f"left out of the trace: {', '.join(words)}")


def _print(simulation: Simulation, what_if: WhatIf | None, plan: MergePlan | None, *, as_json: bool) -> None:
    from vhdtool.report import simulate as report

    if as_json:
        document = report.simulation_json(simulation)
        if what_if is not None:
            document["what_if"] = report.what_if_json(what_if)
        if plan is not None:
            document["plan"] = report.plan_json(plan)
        print_json(document)
        return
    parts = [report.simulation_text(simulation, paint())]
    if what_if is not None:
        parts.append(report.what_if_text(what_if, paint()))
    if plan is not None:
        parts.append(report.plan_text(plan, paint()))
    print_text("\n\n".join(parts))
