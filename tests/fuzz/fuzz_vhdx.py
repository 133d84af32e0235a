"""Fuzz the VHDX reader with atheris, which is no dependency of the project: ``pip install atheris``.

From the project's root, seeds first::

    python -m tests.fuzz.fuzz_vhdx --write-seeds CORPUS
    python -m tests.fuzz.fuzz_vhdx CORPUS -max_total_time=1500 -max_len=256 \\
        -timeout=20 -artifact_prefix=CRASHES/

A crash is minimised with ``-minimize_crash=1 -runs=100000 CRASH`` and kept as a file in
``fixtures/fuzz/vhdx/``, which the tests replay.
"""

from tests.fuzz.run import main

if __name__ == "__main__":
    main("vhdx")
