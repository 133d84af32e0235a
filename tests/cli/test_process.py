"""What only a whole process shows: what it imports, pipes, signals, encodings, terminals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import vhdtool
from tests.cli.helpers import Snapshots, make_snapshots, process, run


@pytest.fixture
def snapshots(tmp_path: Path) -> Snapshots:
    """One format is enough here: processes take their time."""
    return make_snapshots(tmp_path / "vms")


POSIX = pytest.mark.skipif(os.name != "posix", reason="POSIX only")


@pytest.mark.parametrize(
    "arguments", [["info"], ["info", "--json"], ["chain"], ["tree"], ["--help"], ["--version"]]
)
def test_a_look_at_headers_imports_neither_numpy_nor_numba(
    arguments: list[str], snapshots: Snapshots
) -> None:
    paths = {"info": [snapshots.child], "chain": [snapshots.child], "tree": [snapshots.folder]}
    given = [*arguments, *map(str, paths.get(arguments[0], []))]
    code = (
        "import sys\n"
        "from vhdtool.cli.main import main\n"
        f"sys.argv = ['vhdtool', *{given!r}]\n"
        "try:\n    main()\n"
        "except SystemExit as stop:\n    assert stop.code == 0, stop.code\n"
        "heavy = {'numpy', 'numba', 'rich', 'asyncio'} & set(sys.modules)\n"
        "others = {m for m in sys.modules if m.startswith('vhdtool.export')}\n"
        "print(*sorted(heavy | others), file=sys.stderr)\n"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stderr.split() == []


def test_info_imports_no_other_command(snapshots: Snapshots) -> None:
    code = (
        "import sys\n"
        "from vhdtool.cli.main import main\n"
        f"sys.argv = ['vhdtool', 'info', {str(snapshots.child)!r}]\n"
        "try:\n    main()\n"
        "except SystemExit:\n    pass\n"
        "print(*sorted(m for m in sys.modules if m.startswith('vhdtool.cli.')), file=sys.stderr)\n"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    shared = {"app", "faults", "main", "options", "output"}
    assert {name.removeprefix("vhdtool.cli.") for name in done.stderr.split()} == shared | {"info"}


def test_python_m_vhdtool_is_the_command() -> None:
    assert process("--version").stdout.decode().strip() == f"vhdtool, version {vhdtool.__version__}"


@POSIX
@pytest.mark.parametrize("command", ["info", "map", "read", "export"])
def test_a_reader_that_goes_away_is_no_reason_to_complain(command: str, tmp_path: Path) -> None:
    snapshots = make_snapshots(tmp_path)
    arguments = {"export": ["-"], "map": ["--json"]}.get(command, [])
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = process(command, snapshots.child, *arguments, code=74, stdout=writer)
    finally:
        os.close(writer)

    assert done.stderr == b""


@POSIX
def test_the_disk_goes_through_a_pipe_unchanged(snapshots: Snapshots) -> None:
    assert process("export", snapshots.child, "-").stdout == snapshots.child_disk
    assert process("read", snapshots.child).stdout == snapshots.child_disk


@POSIX
@pytest.mark.parametrize("after", [0.0, 0.03, 0.06, 0.1, 0.2, 0.4])
def test_ctrl_c_at_any_moment_ends_quietly(after: float, tmp_path: Path) -> None:
    reader, writer = os.pipe()  # nobody reads: the command waits in a write, if it comes so far
    run("create", tmp_path / "a.vhd", "--size", "64MiB", "--type", "fixed")
    running = subprocess.Popen(
        [sys.executable, "-m", "vhdtool", "export", str(tmp_path / "a.vhd"), "-"],
        stdout=writer,
        stderr=subprocess.PIPE,
    )
    os.close(writer)
    try:
        wait_for_python(running.pid)
        time.sleep(after)
        running.send_signal(signal.SIGINT)
        _, stderr = running.communicate(timeout=30)
    finally:
        running.kill()
        os.close(reader)

    lines = stderr.decode().splitlines()
    if b"Traceback" in stderr and "vhdtool/cli" not in stderr.decode():
        pytest.skip("the interpreter itself was still starting")
    assert lines == ["error: stopped by the user"]
    # Interrupted while it was making a class from text, Python ends itself by the signal, handled or not:
    # a shell calls that 130 too.
    assert running.returncode in (130, -signal.SIGINT)


def wait_for_python(pid: int) -> None:
    """Until the interpreter has its handler for SIGINT: before, the signal just kills it."""
    status = Path(f"/proc/{pid}/status")
    if not status.exists():
        time.sleep(0.2)
        return
    for _ in range(200):
        caught = next(line for line in status.read_text().splitlines() if line.startswith("SigCgt"))
        if int(caught.split()[1], 16) & 1 << signal.SIGINT - 1:
            return
        time.sleep(0.005)


@POSIX
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_odd_names_print_in_any_encoding(encoding: str, tmp_path: Path) -> None:
    snapshots = make_snapshots(tmp_path / "größe 日本\udcff")
    environment = {"PYTHONIOENCODING": encoding}

    for arguments in (["info", snapshots.child], ["tree", snapshots.folder], ["chain", snapshots.child]):
        process(*arguments, environment=environment)
    gone = process("info", snapshots.folder / "\udcfe\n\x1b[31m", code=66, environment=environment)

    assert len(gone.stderr.splitlines()) == 1
    assert b"\x1b" not in gone.stderr


@POSIX
def test_a_tree_is_drawn_with_what_the_encoding_has(tmp_path: Path) -> None:
    snapshots = make_snapshots(tmp_path)

    ascii_tree = process("tree", snapshots.folder, environment={"PYTHONIOENCODING": "ascii"}).stdout
    utf8_tree = process("tree", snapshots.folder, environment={"PYTHONIOENCODING": "utf-8"}).stdout

    assert b"|-- child" in ascii_tree
    assert b"`-- other" in ascii_tree
    assert "├── child" in utf8_tree.decode()


def test_closed_streams_are_no_reason_to_crash(snapshots: Snapshots) -> None:
    for stream in ("stdout", "stderr"):
        code = f"import sys; sys.{stream} = None; from vhdtool.cli.main import main; main()"
        arguments = [sys.executable, "-c", code, "info", str(snapshots.child)]
        done = subprocess.run(arguments, capture_output=True)
        assert (done.returncode, done.stderr) == (0, b"")
    code = "import sys; sys.stdout = None; from vhdtool.cli.main import main; main()"
    arguments = [sys.executable, "-c", code, "export", str(snapshots.child), "-"]
    done = subprocess.run(arguments, capture_output=True)
    assert done.returncode == 73
    assert done.stderr == b"error: standard output is closed\n"


@POSIX
def test_progress_and_colours_are_for_terminals_only(snapshots: Snapshots, tmp_path: Path) -> None:
    piped = process("export", snapshots.child, tmp_path / "a.raw")
    shown = on_a_terminal("export", snapshots.child, tmp_path / "b.raw")

    assert piped.stdout + piped.stderr == b""
    assert b"b.raw: 4 MiB" in shown
    assert b"\x1b[" in on_a_terminal("chain", snapshots.child)
    assert b"\x1b[" not in on_a_terminal("chain", snapshots.child, environment={"NO_COLOR": "1"})
    assert b"\x1b[" not in process("chain", snapshots.child).stdout


@POSIX
def test_bytes_of_a_disk_are_not_written_to_a_terminal(snapshots: Snapshots) -> None:
    for arguments in (["read", snapshots.child], ["export", snapshots.child, "-"]):
        assert b"error: cannot write an image to a terminal" in on_a_terminal(*arguments)


def on_a_terminal(*args: object, environment: dict[str, str] | None = None) -> bytes:
    """What a command prints to a terminal of its own."""
    import pty

    leader, follower = pty.openpty()
    done = {k: v for k, v in os.environ.items() if k != "NO_COLOR"}
    running = subprocess.Popen(
        [sys.executable, "-m", "vhdtool", *map(str, args)],
        stdin=follower,
        stdout=follower,
        stderr=follower,
        env={**done, "TERM": "xterm", **(environment or {})},
    )
    os.close(follower)
    output = b""
    try:
        while piece := os.read(leader, 4096):
            output += piece
    except OSError:  # the other end is closed
        pass
    finally:
        os.close(leader)
        running.wait(30)
    return output


def test_digests_are_printed_as_sha256sum_does(snapshots: Snapshots, tmp_path: Path) -> None:
    import hashlib

    digest = hashlib.sha256(snapshots.child_disk).hexdigest()
    target = tmp_path / "disk.raw"

    to_file = process("export", snapshots.child, target, "--hash", "sha256")
    to_pipe = process("export", snapshots.child, "-", "--hash", "sha256")

    assert to_file.stdout.decode() == f"{digest}  {target}\n"
    assert to_pipe.stdout == snapshots.child_disk
    assert to_pipe.stderr.decode() == f"{digest}  -\n"
    assert target.read_bytes() == snapshots.child_disk
    assert json.loads((tmp_path / "disk.raw.manifest.json").read_bytes())["content"]["bytes"] == 4 << 20


@POSIX
def test_digests_keep_the_bytes_of_odd_names(snapshots: Snapshots, tmp_path: Path) -> None:
    target = tmp_path / "\udcff.raw"

    done = process("export", snapshots.base, target, "--hash", "sha1")

    assert done.stdout.endswith(b"/\xff.raw\n")


@pytest.mark.parametrize(
    ("shell", "marks"),
    [
        ("bash", ["_vhdtool_completion", "_VHDTOOL_COMPLETE=bash_complete"]),
        ("zsh", ["#compdef vhdtool", "_VHDTOOL_COMPLETE=zsh_complete"]),
        ("fish", ["complete --no-files --command vhdtool", "_VHDTOOL_COMPLETE=fish_complete"]),
        ("powershell", ["Register-ArgumentCompleter", "powershell_complete"]),
    ],
)
def test_completion_prints_the_script_of_a_shell(shell: str, marks: list[str]) -> None:
    script = run("completion", shell).stdout

    for mark in marks:
        assert mark in script


def test_completion_completes() -> None:
    words = {"COMP_WORDS": "vhdtool ex", "COMP_CWORD": "1", "COMP_WORD": "ex"}

    for shell in ("bash", "zsh", "powershell"):
        done = process(environment={"_VHDTOOL_COMPLETE": f"{shell}_complete", **words})
        assert b"export" in done.stdout
        assert b"info" not in done.stdout
