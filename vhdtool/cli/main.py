"""Where the process starts; what the command line is stands in ``app``."""

import os
import sys


def main() -> None:
    """Run the command line on ``sys.argv`` and exit.

    All imports are made in here: Ctrl-C during them, which take most of a short command's time, ends as
    quietly as one during the work.
    """
    # NumPy's linear algebra starts a thread for each CPU, and nothing here asks it for anything.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        from vhdtool.cli.app import cli

        cli.main(prog_name="vhdtool")
    except KeyboardInterrupt:
        sys.stderr.write("error: stopped by the user\n")
        sys.exit(130)
    finally:
        # A KeyboardInterrupt that leaves text run by exec(), as when an import makes a dataclass, is kept in
        # mind by CPython whoever handles it, and the process ends by SIGINT instead of with its exit code.
        # The next such text clears that.
        exec("")
