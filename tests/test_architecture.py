"""The house rules: who may import whom, and what a glance at a header may cost."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import vhdtool

PACKAGE = Path(vhdtool.__file__).parent

# Each room and the rooms below it that it may import.  What is not here is forbidden.
CONSUMERS = {"export", "simulate", "guest", "serve", "hyperv"}
BELOW = {
    "errors": set(),
    "checksum": set(),
    "kernels": set(),
    "model": {"errors"},
    "source": {"errors"},
    "formats": {"errors", "checksum", "model", "source", "kernels"},
    "chain": {"errors", "model", "source", "kernels", "formats"},
    "report": {"errors", "model", "source", "formats", "chain", *CONSUMERS},
    **{room: {"errors", "model", "source", "formats", "chain"} for room in CONSUMERS},
    "cli": {"errors", "model", "source", "formats", "chain", "report", *CONSUMERS},
}
# Packages and the only places that may import them.
OWNERS = {
    "click": {"cli"},
    "rich": {"cli"},
    "construct": {"layout.py"},
    "numba": {"kernels"},
    "jinja2": {"report"},
}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imports(path: Path) -> Iterator[str]:
    """Every module that ``path`` imports, wherever in it, as a dotted name."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the arrows"
            assert node.module is not None
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_import_follows_the_arrows(path: Path) -> None:
    room = room_of(path)
    if room in ("__init__", "__main__"):
        return
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "vhdtool" and parts[1:] not in ([], ["__version__"]):
            target = parts[1]
            assert target == room or target in BELOW[room], f"{room} must not import {name}"
        if parts[0] in OWNERS:
            places = OWNERS[parts[0]]
            assert room in places or path.name in places, f"{path.name} must not import {parts[0]}"


@pytest.mark.parametrize(("one", "other"), [("vhd", "vhdx"), ("vhdx", "vhd")])
def test_the_formats_do_not_know_each_other(one: str, other: str) -> None:
    for path in (PACKAGE / "formats" / one).glob("*.py"):
        assert not [name for name in imports(path) if name.startswith(f"vhdtool.formats.{other}.")]


def test_kernels_import_nothing_of_ours() -> None:
    for path in (PACKAGE / "kernels").glob("*.py"):
        ours = [name for name in imports(path) if name.startswith("vhdtool.")]
        assert all(name.startswith("vhdtool.kernels.") for name in ours)


def test_only_source_opens_inputs() -> None:
    """Files are opened for reading in source.py, for writing in export/containers/target.py."""
    allowed = {PACKAGE / "source.py", PACKAGE / "export" / "containers" / "target.py"}
    for path in modules():
        if path in allowed:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id != "open", f"{path}:{node.lineno} opens a file"
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                is_os_open = (
                    node.func.attr in ("open", "fdopen")
                    and isinstance(node.func.value, ast.Name)
                    and node.func.value.id in ("os", "io")
                )
                reads = node.func.attr in ("read_bytes", "read_text", "write_bytes", "write_text")
                # path.open("rb"), and not chain.open().
                modes = [a.value for a in node.args if isinstance(a, ast.Constant)]
                reads |= node.func.attr == "open" and any(
                    isinstance(mode, str) and set(mode) <= set("rwxab+t") for mode in modes
                )
                is_nowhere = ast.unparse(node).startswith("os.open(os.devnull,")
                assert not is_os_open or is_nowhere, f"{path}:{node.lineno} opens a file"
                assert not reads, f"{path}:{node.lineno} opens a file"


def test_public_names_are_typed_where_they_come_from() -> None:
    declared = {
        f"{node.module}.{alias.name}"
        for statement in ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8")).body
        if isinstance(statement, ast.If)
        for node in statement.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }

    assert declared == {f"{home}.{name}" for name, home in vhdtool._HOME_OF.items()}
    for name in vhdtool.__all__:
        assert getattr(vhdtool, name) is not None


def test_importing_vhdtool_imports_no_numpy_and_no_numba() -> None:
    code = "import sys, vhdtool; vhdtool.open_image; print(*sorted({'numpy', 'numba'} & set(sys.modules)))"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == ""
