"""Prints what a run noted: ``python -m benchmarks.show figures.json``."""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main(path: str) -> None:
    """One paragraph a benchmark: everything in its ``extra_info``."""
    for run in json.loads(Path(path).read_text(encoding="utf-8"))["benchmarks"]:
        print(run["name"])
        for name, value in run["extra_info"].items():
            print(f"  {name:<34} {value:>16}")
        print()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m benchmarks.show FIGURES.json")
    main(sys.argv[1])
