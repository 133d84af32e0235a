"""Whether the inputs of a job are still the files that were opened."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from vhdtool.errors import FileMissingError, FormatError, InputError, SourceChangedError, printable
from vhdtool.source import FileSource


class SourceWatch:
    """Compares files with what they were when they were opened.

    Args:
        files: every file that the job reads.
    """

    def __init__(self, files: Sequence[FileSource]) -> None:
        self._files = tuple(files)

    def check(self) -> None:
        """Look at every file.

        Raises:
            SourceChangedError: names the first that changed, and what.
        """
        for file in self._files:
            try:
                change = file.opened_as.difference(file.fingerprint())
            except FileMissingError:
                change = "it is gone"
            if change:
                raise SourceChangedError(f"{printable(file.name)} changed while it was read: {change}")

    @contextmanager
    def guarding(self) -> Iterator[None]:
        """A file that is written to can break any rule while it is read: then that is what is said."""
        try:
            yield
        except (FormatError, InputError):
            self.check()
            raise
