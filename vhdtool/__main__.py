"""``python -m vhdtool`` is the ``vhdtool`` command."""

from vhdtool.cli.main import main

if __name__ == "__main__":
    main()
