"""libvhdi's side of a comparison: a program for whatever interpreter can import pyvhdi.

Nothing of vhdtool imports this: ``libvhdi.py`` hands its text to the other interpreter.  It reads one JSON
request a line from stdin and answers each with a line on stdout, until stdin ends.
"""

import sys

# Not from the working directory: what lies beside an image must not be run.
sys.path[:] = [folder for folder in sys.path if folder]

import json  # noqa: E402
import signal  # noqa: E402
import time  # noqa: E402
import zlib  # noqa: E402
from typing import Any  # noqa: E402

_BYTES_AT_ONCE = 16 << 20


class Reader:
    """One chain, its images leaf first, each with its parent set."""

    def __init__(self) -> None:
        import pyvhdi

        self._library = pyvhdi
        self._layers: list[Any] = []

    def version(self) -> str:
        """Of libvhdi."""
        return str(self._library.get_version())

    def open(self, paths: list[str]) -> int:
        """Open the images at ``paths``, leaf first; the size of the leaf's disk."""
        for path in paths:
            layer = self._library.file()
            layer.open(path)
            if self._layers:
                self._layers[-1].set_parent(layer)
            self._layers.append(layer)
        return int(self._layers[0].get_media_size())

    def read(self, layer: int, offsets: list[int], length: int) -> dict[str, Any]:
        """Read ``length`` bytes from each of ``offsets`` of the disk of ``layer``.

        What was read is digested outside the clock, and let go of every few megabytes.
        """
        disk = self._layers[layer]
        step = max(1, _BYTES_AT_ONCE // length)
        seconds, checksums = 0.0, []
        for at in range(0, len(offsets), step):
            wanted = offsets[at : at + step]
            began = time.perf_counter()
            pieces = [disk.read_buffer_at_offset(length, offset) for offset in wanted]
            seconds += time.perf_counter() - began
            checksums += [zlib.crc32(piece) for piece in pieces]
        return {"seconds": seconds, "checksums": checksums}


def main() -> None:
    """Answer requests until there are no more."""
    # Ctrl-C is for who asks: it closes stdin then.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    reader = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if reader is None:
                reader = Reader()
            answer = {"answer": getattr(reader, request["job"])(*request["arguments"])}
        except Exception as error:  # noqa: BLE001 - whatever goes wrong is told over there
            answer = {"error": f"{error}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
