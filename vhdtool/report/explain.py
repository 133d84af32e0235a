"""How one sector is read: the steps of the walk as a table, where it ends, and the bytes."""

from __future__ import annotations

from vhdtool.chain.explain import Explanation, Result, Step
from vhdtool.report.findings import finding_lines, findings_json
from vhdtool.report.hexdump import hexdump
from vhdtool.report.text import Document, Paint, name_of, plain, table

_HEADER = ("Layer", "Structure", "Index", "File offset", "Value", "State", "Outcome")
_RIGHT = (0, 2, 3, 4)


def explain_json(explanation: Explanation) -> Document:
    """The document of ``explain --json``; ``bytes_hex`` is null where the sector cannot be read."""
    result = explanation.result
    return {
        "offset": explanation.offset,
        "sector": explanation.sector,
        "sector_size": explanation.sector_size,
        "steps": [_step_json(step) for step in explanation.steps],
        "result": {
            "layer": result.layer,
            "path": str(result.path),
            "file_offset": result.file_offset,
            "zero": result.zero,
            "damaged": result.damaged,
            "in_log": result.in_log,
            "part": None if result.part is None else str(result.part),
            "part_offset": result.part_offset,
        },
        "bytes_hex": None if explanation.data is None else explanation.data.hex(),
        "findings": findings_json(explanation.findings),
    }


def _step_json(step: Step) -> Document:
    return {
        "layer": step.layer,
        "path": str(step.path),
        "structure": step.structure,
        "index": step.index,
        "file_offset": step.file_offset,
        "value": step.value,
        "mask": step.mask,
        "state": step.state,
        "outcome": str(step.outcome),
        "note": step.note,
    }


def explain_text(explanation: Explanation, paint: Paint = plain) -> str:
    """The same for people: a line a step, then the result, then the sector as a hex dump."""
    start, size = explanation.start, explanation.sector_size
    place = f"guest byte {explanation.offset:#x} is in sector {explanation.sector}"
    head = f"{place}, guest bytes {start:#x} to {start + size:#x}"
    lines = [
        paint(head[0].upper() + head[1:], "name"),
        "",
        *_files(explanation.steps),
        "",
        _steps_text(explanation.steps),
        "",
        _result_text(explanation.result, paint),
        *finding_lines(explanation.findings, paint=paint),
    ]
    if explanation.data is None:
        return "\n".join(lines)
    dump = "".join(hexdump([explanation.data], start)).rstrip("\n")
    return "\n".join([*lines, "", dump])


def _steps_text(steps: tuple[Step, ...]) -> str:
    """A line a step."""
    rows = [
        (
            step.layer,
            step.structure,
            "" if step.index is None else step.index,
            "" if step.file_offset is None else f"{step.file_offset:#x}",
            _value_text(step),
            step.state,
            step.note,
        )
        for step in steps
    ]
    return table(_HEADER, rows, right=_RIGHT)


def _files(steps: tuple[Step, ...]) -> list[str]:
    """The layers that were asked: their names would make the table's lines longer than they are already."""
    names = {step.layer: name_of(step.path) for step in steps}
    return [f"{layer:>5}  {name}" for layer, name in names.items()]


def _value_text(step: Step) -> str:
    """In hex; of a bitmap its byte and which bit of it."""
    if step.value is None:
        return ""
    return f"{step.value:#x}" if step.mask is None else f"{step.value:#04x} & {step.mask:#04x}"


def _result_text(result: Result, paint: Paint) -> str:
    where = f"layer {result.layer}, {name_of(result.path)}"
    if result.damaged:
        return paint(f"Cannot be read: {where}", "error")
    if result.zero:
        return f"Zeros: {where}"
    if result.in_log:
        return f"From the log of {where}"
    text = f"At {result.file_offset:#x} of {where}"
    return text if result.part is None else f"{text}: at {result.part_offset:#x} of {name_of(result.part)}"
