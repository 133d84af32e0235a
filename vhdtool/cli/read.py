"""``vhdtool read LEAF``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from vhdtool.cli.options import FILE, SIZE, Access, chain_options, force_option
from vhdtool.cli.output import open_sound, print_pieces, require_stdout

if TYPE_CHECKING:
    from vhdtool.chain.chain import Chain

_PIECE: Final = 1 << 20


@click.command("read")
@click.argument("leaf", type=FILE)
@click.option("--offset", type=SIZE, default="0", show_default=True, help="First byte of the virtual disk.")
@click.option("--length", type=SIZE, help="How many bytes; up to the disk's end without it.")
@click.option("-o", "--output", type=FILE, metavar="FILE", help="Write to FILE instead of stdout.")
@click.option("--hex", "as_hex", is_flag=True, help="Print offset, hex and ASCII instead of the bytes.")
@force_option
@chain_options
def command(
    leaf: Path,
    offset: int,
    length: int | None,
    output: Path | None,
    as_hex: bool,
    force: bool,
    access: Access,
) -> None:
    """Write bytes of the virtual disk to stdout."""
    if as_hex and output is not None:
        raise click.UsageError("--hex prints to stdout; redirect it instead of --output")
    with open_sound(leaf, access) as chain:
        size = chain.virtual_size
        stop = size if length is None else offset + length
        if not offset <= stop <= size:
            raise click.UsageError(f"the range {offset} to {stop} is not inside the disk of {size} bytes")
        if as_hex:
            from vhdtool.report.hexdump import hexdump

            print_pieces(hexdump(_pieces(chain, offset, stop), offset))
        else:
            _write(chain, offset, stop, output, force)


def _pieces(chain: Chain, start: int, stop: int) -> Iterator[bytes]:
    for at in range(start, stop, _PIECE):
        yield chain.read(at, min(_PIECE, stop - at))


def _write(chain: Chain, start: int, stop: int, output: Path | None, force: bool) -> None:
    from vhdtool.export.containers.target import StdoutTarget, TargetFile, mode_like

    inputs = [file.path for file in chain.files()]
    if output is None:
        require_stdout()
    with (
        StdoutTarget(inputs=inputs)
        if output is None
        else TargetFile(output, force=force, inputs=inputs, mode=mode_like(inputs)) as target
    ):
        written = 0
        for piece in _pieces(chain, start, stop):
            target.write_at(written, piece)
            written += len(piece)
        target.finish(written)
        target.publish()
