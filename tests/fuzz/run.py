"""What both atheris scripts do."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

# One thread each: a fuzzer is run beside others, and NumPy's arrays here are small.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# Atheris leaks what an instrumented comparison of arrays returns, a megabyte an input: these modules are
# run and not instrumented.
ARRAY_MODULES = [
    "vhdtool.chain.diff",
    "vhdtool.chain.engine",
    "vhdtool.chain.flatten",
    "vhdtool.chain.reference",
    "vhdtool.formats.overlap",
    "vhdtool.formats.vhd.bat",
    "vhdtool.formats.pieces",
    "vhdtool.formats.vhdx.bat",
    "vhdtool.formats.vhdx.inspect",
    "vhdtool.kernels",
    "vhdtool.model.blockmap",
    "vhdtool.model.plan",
]


def main(target: str) -> None:
    """Write the seeds of ``target`` into a folder, or fuzz it."""
    if "--write-seeds" in sys.argv:
        from tests.fuzz.targets import seed_inputs

        folder = Path(sys.argv[sys.argv.index("--write-seeds") + 1])
        folder.mkdir(parents=True, exist_ok=True)
        for data in seed_inputs(target):
            (folder / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
        return
    try:
        import atheris
    except ImportError:
        sys.exit("atheris is not installed: pip install atheris")
    with atheris.instrument_imports(include=["vhdtool"], exclude=ARRAY_MODULES):
        from tests.fuzz.targets import TARGETS, seed_inputs

        # Modules that are imported inside functions are instrumented too when they come in here.
        for data in seed_inputs(target):
            TARGETS[target](data)
    atheris.Setup(sys.argv, TARGETS[target])
    atheris.Fuzz()
