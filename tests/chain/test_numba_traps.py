"""numba's traps, each in a process of its own: nowhere to write, threads, forks, stale and broken caches."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import vhdtool
from tests.generated import MIB, Style, a_chain

PACKAGE = Path(vhdtool.__file__).parent
ROOT = PACKAGE.parent
KERNELS = PACKAGE / "kernels"
# In front of every program: where the package is, and warnings are errors as in all tests.
PYTHON = [sys.executable, "-W", "error"]

A_LOOKUP = """
import numpy as np
import vhdtool
with vhdtool.open_chain({path!r}) as chain:
    offsets = np.arange(0, chain.virtual_size, 512)
    found = [chain.resolved(engine).lookup(offsets) for engine in ("numba", "numpy")]
    assert all((a == b).all() for a, b in zip(*found))
    print(len(offsets), "lookups")
"""
A_CLAIM = """
import numpy as np
from {package}.bitmap import claim
words, counts = np.array([[5], [2**64 - 1]], np.uint64), np.empty(1, np.int64)
claim(words, np.array([0, 2]), counts)
print(int(counts[0]))
"""


def run(
    code: str, folder: Path, env: Mapping[str, str | None] | None = None
) -> subprocess.CompletedProcess[str]:
    """``code`` in a fresh interpreter started in ``folder``, with changes of its environment."""
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    # Kernels are compiled here, however the other tests run.
    switches = {"NUMBA_DISABLE_JIT": None, "NUMBA_BOUNDSCHECK": None}
    for name, value in {**switches, **(env or {})}.items():
        variables.pop(name, None)
        if value is not None:
            variables[name] = value
    done = subprocess.run(
        [*PYTHON, "-c", code],
        cwd=folder,
        env=variables,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    return a_chain(tmp_path / "images", 3, Style(size=3 * MIB), 1).path


# ---------------------------------------------------------------- nowhere to write


# Root writes wherever it likes, until it gives up its privileges.
GIVE_UP_PRIVILEGES = """
import ctypes, os
if os.getuid() == 0:
    header, nothing = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert ctypes.CDLL(None).capset(header, nothing) == 0
"""


@pytest.fixture
def installation(tmp_path: Path) -> Iterator[Path]:
    """A copy of the package in folders that cannot be written to."""
    copy = tmp_path / "site"
    shutil.copytree(PACKAGE, copy / "vhdtool", ignore=shutil.ignore_patterns("__pycache__"))
    folders = [copy, *(path for path in copy.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    yield copy
    for folder in folders:
        folder.chmod(0o755)


@pytest.mark.skipif(
    sys.platform == "win32" or (sys.platform != "linux" and os.getuid() == 0),
    reason="no folder is read-only for this user",
)
@pytest.mark.parametrize(
    ("home", "cache"),
    [(None, None), ("{nowhere}", None), (None, "{nowhere}"), ("{installation}", "not/absolute")],
)
def test_a_read_only_installation_works_where_nothing_can_be_written(
    home: str | None, cache: str | None, installation: Path, chain: Path, tmp_path: Path
) -> None:
    file = tmp_path / "a file"
    file.touch()
    places = {"nowhere": file / "below it", "installation": installation}
    env = {
        "HOME": home and home.format(**places),
        "XDG_CACHE_HOME": cache and cache.format(**places),
        "NUMBA_CACHE_DIR": None,
        "PYTHONPATH": str(installation),
    }
    code = (
        GIVE_UP_PRIVILEGES
        + A_LOOKUP.format(path=str(chain))
        + f"""
import sys
from vhdtool.kernels import bitmap
assert bitmap.__file__.startswith({str(installation)!r})
print(bitmap.claim._cache.cache_path)
try:
    open({str(installation / "file")!r}, "w")
except PermissionError:
    print("read-only")
sys.argv = ["vhdtool", "map", {str(chain)!r}]
from vhdtool.cli.main import main
sys.exit(main())
"""
    )

    done = run(code, installation, env)

    lines = done.stdout.splitlines()
    assert lines[0].endswith(" lookups")
    assert lines[1:3] == ["None", "read-only"]
    assert len(lines) > 5
    assert done.stderr == ""


def test_kernels_are_kept_in_the_users_cache_and_not_in_the_package(tmp_path: Path) -> None:
    env = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache"), "NUMBA_CACHE_DIR": None}
    env["LOCALAPPDATA"] = str(tmp_path / "cache")
    before = set(PACKAGE.rglob("*.nb[ic]"))

    assert run(A_CLAIM.format(package="vhdtool.kernels"), tmp_path, env).stdout == "4\n"

    folder = tmp_path / ("Library/Caches" if sys.platform == "darwin" else "cache") / "vhdtool" / "kernels"
    assert len(list(folder.rglob("bitmap.claim-*.nbi"))) == 1
    assert set(PACKAGE.rglob("*.nb[ic]")) == before


# ---------------------------------------------------------------- broken and stale caches


@pytest.mark.parametrize("rubbish", [b"", b"rubbish", b"\x80\x04N."])
def test_a_cache_that_is_rubbish_is_made_anew(rubbish: bytes, tmp_path: Path) -> None:
    env = {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    code = A_CLAIM.format(package="vhdtool.kernels")
    run(code, tmp_path, env)
    for file in tmp_path.rglob("*.nb[ic]"):
        file.write_bytes(rubbish)

    assert run(code, tmp_path, env).stdout == "4\n"

    assert all(len(file.read_bytes()) > 100 for file in tmp_path.rglob("*.nb[ic]"))


@pytest.mark.skipif(sys.platform == "win32", reason="no limits of file sizes")
def test_a_full_disk_is_no_reason_to_fail_for_a_kernel(tmp_path: Path) -> None:
    code = (
        "import resource, signal\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (512, 512))\n"
    ) + A_CLAIM.format(package="vhdtool.kernels")

    assert run(code, tmp_path, {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}).stdout == "4\n"

    assert list(tmp_path.rglob("*.nbc")) == []


def test_a_cached_kernel_notices_when_a_constant_of_its_file_changes(tmp_path: Path) -> None:
    kernels = tmp_path / "vhdtool" / "kernels"
    shutil.copytree(KERNELS, kernels, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "vhdtool" / "__init__.py").touch()
    env = {"NUMBA_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": str(tmp_path)}
    code = A_CLAIM.format(package="vhdtool.kernels")
    assert run(code, tmp_path, env).stdout == "4\n"
    (cached,) = tmp_path.rglob("bitmap.claim-*.nbi")

    file = kernels / "bitmap.py"
    text = file.read_text()
    assert "0xFFFFFFFFFFFFFFFF" in text
    # Of the same length, as a number often is: only bits 0 and 1 are free now.
    file.write_text(text.replace("0xFFFFFFFFFFFFFFFF", "0x0000000000000003"))

    assert run(code, tmp_path, env).stdout == "2\n"
    assert [cached] == list(tmp_path.rglob("bitmap.claim-*.nbi"))


def test_no_kernel_uses_a_name_of_another_file_of_ours() -> None:
    """The cache of a kernel does not notice when another file changes; popcount has no other answer."""
    allowed = {"vhdtool.kernels.compiled.kernel", "vhdtool.kernels.popcount.popcount"}
    for path in KERNELS.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            ours = {name for name in names if name.split(".")[0] == "vhdtool"}
            assert ours <= allowed, f"{path.name}:{node.lineno}"  # type: ignore[attr-defined]


# ---------------------------------------------------------------- threads and forks


def test_threads_may_be_in_one_kernel_at_once(tmp_path: Path) -> None:
    """Compiled by all of them at the same time, too: the cache is empty."""
    code = """
import sys, threading
import numpy as np
from vhdtool.chain.engine import machine_for
sys.setswitchinterval(1e-5)
rng = np.random.default_rng(1)
words = rng.integers(0, 2**64, (2000, 64), np.uint64)
group_first = np.arange(0, 2001, 8)
def answer(engine):
    machine, mine, counts = machine_for(engine), words.copy(), np.empty(250, np.int64)
    machine.claim(mine, group_first, counts)
    return (counts, *machine.claimed_runs(mine, group_first, counts))
expected = answer("numpy")
start, right = threading.Barrier(4), []
def work():
    start.wait()
    for _ in range(10):
        right.append(all((a == b).all() for a, b in zip(answer("numba"), expected)))
threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(right.count(True), len(right))
"""
    env = {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}

    assert run(code, tmp_path, env).stdout == "40 40\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
@pytest.mark.filterwarnings("ignore")
def test_kernels_run_in_the_children_of_a_process_in_which_they_ran(chain: Path, tmp_path: Path) -> None:
    code = f"""
import multiprocessing, os, sys, warnings
import numpy as np
import vhdtool
warnings.simplefilter("ignore")  # forking while threads run is what this is about
chain = vhdtool.open_chain({str(chain)!r})
offsets = np.arange(0, chain.virtual_size, 512)
expected = chain.resolved("numba").lookup(offsets)
chain.resolved("numba").runs_at(offsets)
def right():
    with vhdtool.open_chain({str(chain)!r}) as anew:
        found = [c.resolved("numba").lookup(offsets) for c in (chain, anew)]
        plans = list(anew.windows(engine="numba"))
    return len(plans) > 0 and all((a == b).all() for one in found for a, b in zip(one, expected))
child = os.fork()
if child == 0:
    os._exit(7 if right() else 8)
_, status = os.waitpid(child, 0)
print(os.waitstatus_to_exitcode(status))
with multiprocessing.get_context("fork").Pool(2) as pool:
    print(pool.apply(right), pool.apply(right))
print(right())
chain.close()
"""

    assert run(code, tmp_path).stdout == "7\nTrue True\nTrue\n"


def test_no_kernel_has_threads_of_its_own() -> None:
    for path in KERNELS.glob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert "parallel=" not in text, path.name
        assert "prange" not in text, path.name


# ---------------------------------------------------------------- bounds, types, overflow


@pytest.mark.skipif(os.environ.get("NUMBA_DISABLE_JIT") == "1", reason="all tests run so already")
@pytest.mark.parametrize(
    "mode",
    # All tests are run as plain Python in continuous integration, too.
    ["NUMBA_BOUNDSCHECK", pytest.param("NUMBA_DISABLE_JIT", marks=pytest.mark.slow)],
)
def test_the_tests_of_the_kernels_pass_with_bounds_checked(mode: str, tmp_path: Path) -> None:
    """Kernels do not look at bounds: compiled with checks, and as plain Python, they must never miss any.

    The cache knows nothing of such switches, so it is another one.
    """
    proof = """
import numpy as np
from vhdtool.kernels.bitmap import claim
try:
    claim(np.zeros((1, 1), np.uint64), np.array([0, 2]), np.empty(1, np.int64))
except IndexError:
    print("checked")
"""
    env = {mode: "1", "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    assert run(proof, tmp_path, env).stdout == "checked\n"
    files = [ROOT / "tests" / "chain" / f"test_{name}.py" for name in ("kernels", "resolved", "naive")]
    variables = {**os.environ, **env}
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider"]
    command += ["--hypothesis-profile=vhdtool-few", "-k", "not real_images"]

    done = subprocess.run(
        [*command, *map(str, files)],
        cwd=ROOT,
        env=variables,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )

    assert done.returncode == 0, done.stdout[-3000:]


ARRAYS = """
import numpy as np
i, u, four, b, h, w, d = (np.zeros((2, 2) if t == "w" else 2, t if t != "w" else "u8")
    for t in ("i8", "u8", "u4", "u1", "i2", "w", "i4"))
shifts = (20, 12, 9, 1 << 20)
i[1] = 2
"""
CALLS = {
    "bitmap.claim": "(w, i, i)",
    "bitmap.place_runs": "(w, i, i, i)",
    "rank.lookup": "(i, i, i, u, four, i, shifts, h, i)",
    "rank.runs_at": "(i, i, i, u, four, i, shifts, i, i)",
    "walk.walk_lookups": "(i, i, i, b, i, i, i, i, 9, h, i, h)",
    "positioned.read_pieces": "(d, i, i, i, b, b.view(np.bool_))",
    "positioned.gather": "(i, h, i, d, i, 9, 9, 9, b, w.view(np.int64))",
    "positioned.all_zeros": "(b, u, 9, 9)",
    "positioned.zeros_found": "(w.view(np.int64), 9, 9, 9, b, u, w.view(np.int64))",
}


@pytest.mark.parametrize("name", CALLS)
def test_no_kernel_mixes_words_with_signed_numbers_or_gets_floats(name: str, tmp_path: Path) -> None:
    """Of a uint64 and an int numba makes an int64, or a float: top bits are lost in silence."""
    code = f"""{ARRAYS}
import numba
from numba.core import types
from vhdtool.kernels import bitmap, rank, walk, positioned
fresh = numba.njit({name}.py_func)
fresh.compile(tuple(map(numba.typeof, {CALLS[name]})))
(compiled,) = fresh.overloads.values()
typed = compiled.type_annotation
checked = 0
for variable, kind in typed.typemap.items():
    assert not isinstance(kind, (types.Float, types.Complex)), (variable, kind)
for expression, signature in typed.calltypes.items():
    if getattr(expression, "op", "") not in ("binop", "inplace_binop") or signature is None:
        continue
    kinds = [kind for kind in signature.args if isinstance(kind, types.Integer)]
    widest = [kind for kind in kinds if kind.bitwidth == 64]
    mixed = len({{kind.signed for kind in widest}}) > 1
    is_comparison = signature.return_type == types.boolean
    assert not mixed or is_comparison, (str(expression), signature)
    checked += 1
print(checked > 0 or {name!r} == "positioned.read_pieces")
"""

    assert run(code, tmp_path).stdout == "True\n"


def test_every_kernel_is_among_those_whose_types_are_looked_at() -> None:
    found = set()
    for path in KERNELS.glob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and "kernel" in map(ast.unparse, node.decorator_list):
                found.add(f"{path.stem}.{node.name}")
    assert found == set(CALLS)


# ---------------------------------------------------------------- without numba


WITHOUT_NUMBA = "import sys\nsys.modules['numba'] = sys.modules['llvmlite'] = None\n"


def test_without_numba_everything_works_but_what_asks_for_it_by_name(chain: Path, tmp_path: Path) -> None:
    code = (
        WITHOUT_NUMBA
        + f"""
import numpy as np
import vhdtool
from vhdtool.chain.engine import machine_for
from vhdtool.chain.naive import NaiveWalk
from vhdtool.errors import MissingPackageError
assert machine_for("auto", bitmaps=10**9, lookups=10**9, reads=10**9).name == "numpy"
with vhdtool.open_chain({str(chain)!r}) as chain:
    offsets = np.arange(0, chain.virtual_size, 512)
    chain.lookup(offsets)
    chain.read_many(offsets, 512)
    list(chain.windows())
    for ask in (lambda: machine_for("numba"), lambda: list(chain.windows(engine="numba")),
                lambda: chain.resolved("numba").lookup(offsets), lambda: NaiveWalk(chain.images)):
        try:
            ask()
        except MissingPackageError as error:
            print(error.exit_code, error)
"""
    )

    done = run(code, tmp_path)

    assert done.stdout.splitlines() == ["69 the numba engine needs the package numba"] * 4


@pytest.mark.parametrize("engine", ["auto", "numba"])
def test_an_export_without_numba_says_so_only_when_asked_for_it(
    engine: str, chain: Path, tmp_path: Path
) -> None:
    target = tmp_path / "out.raw"
    code = (
        WITHOUT_NUMBA
        + f"sys.argv = ['vhdtool', 'export', {str(chain)!r}, {str(target)!r}, '--engine', {engine!r}]\n"
        "from vhdtool.cli.main import main\n"
        "try:\n    code = main()\nexcept SystemExit as error:\n    code = error.code\n"
        "print('exit', code or 0)\n"
    )

    done = run(code, tmp_path)

    if engine == "numba":
        assert done.stdout.endswith("exit 69\n")
        assert done.stderr == "error: the numba engine needs the package numba\n"
        assert not target.exists()
    else:
        assert done.stdout.endswith("exit 0\n")
        assert target.stat().st_size > 0


@pytest.mark.parametrize("command", [["info"], ["chain"], ["tree"], ["--help"]])
def test_a_glance_imports_neither_numpy_nor_numba(command: list[str], chain: Path, tmp_path: Path) -> None:
    words = {"info": [str(chain)], "chain": [str(chain)], "tree": [str(chain.parent)]}.get(command[0], [])
    code = (
        "import sys\n"
        f"sys.argv = ['vhdtool', *{command + words!r}]\n"
        "from vhdtool.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print(sorted({'numpy', 'numba', 'llvmlite'} & set(sys.modules)), file=sys.stderr)\n"
    )

    done = run(code, tmp_path)

    assert done.stderr.splitlines()[-1] == "[]"
    assert done.stdout
