"""The whole catalogue."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from tests.catalogue import chain_rows, vhd_rows, vhdx_rows
from tests.catalogue.row import Row

# A rule that both formats have stands in both lists under one sentence.
ROWS: Final[list[Row]] = [
    replace(row, name=f"{kind}: {row.name}")
    for kind, rows in (("VHD", vhd_rows.ROWS), ("VHDX", vhdx_rows.ROWS), ("chain", chain_rows.ROWS))
    for row in rows
]
BY_NAME: Final[dict[str, Row]] = {row.name: row for row in ROWS}
