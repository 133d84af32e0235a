"""Puts the table of findings into ``reference.md``: run it after a finding was added or explained otherwise.

python docs/update_reference.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from vhdtool.report.explanations import EXPLANATIONS

REFERENCE: Final = Path(__file__).with_name("reference.md")
BEGIN: Final = "<!-- findings: made by docs/update_reference.py -->\n"
END: Final = "<!-- end of findings -->\n"


def findings_table() -> str:
    """All codes with their meaning, what to do, and Windows' number for the same."""
    rows = ["| code | meaning | what to do | Windows |", "|---|---|---|---|"]
    for code, explanation in sorted(EXPLANATIONS.items()):
        cells = (f"`{code}`", explanation.meaning, explanation.advice, explanation.windows)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows) + "\n"


def updated(text: str) -> str:
    """``text`` of the reference with the table of today."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + findings_table() + END + after


if __name__ == "__main__":
    REFERENCE.write_text(updated(REFERENCE.read_text(encoding="utf-8")), encoding="utf-8", newline="\n")
