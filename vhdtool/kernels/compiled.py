"""How kernels are compiled: kept between processes where something can be written, else for this one.

Only kernel files import this, and only engines import those: numba costs half a second to start.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import numba
import numpy as np

Function = TypeVar("Function", bound=Callable[..., Any])

# A package's own folder is no place to write to: uninstalling would leave it behind.
_VARIABLE: Final = "NUMBA_CACHE_DIR"


def _cache_folder() -> Path | None:
    """Where this user's programs keep what they can make again; None where nobody says."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA")
    elif sys.platform == "darwin":
        base = str(Path.home() / "Library" / "Caches") if "HOME" in os.environ else None
    else:
        home = os.environ.get("HOME")
        base = os.environ.get("XDG_CACHE_HOME")
        if not base or not Path(base).is_absolute():  # which its specification says to ignore
            base = f"{home}/.cache" if home else None
    return Path(base, "vhdtool", "kernels") if base else None


_is_kept = _VARIABLE in os.environ
if not _is_kept and (folder := _cache_folder()) is not None:
    numba.config.CACHE_DIR = str(folder)  # type: ignore[attr-defined]
    _is_kept = True


def kernel(function: Function) -> Function:
    """``function`` compiled when it is first called, without the GIL; never with threads of its own.

    numba's own threads do not survive a fork, or two callers at once; ours work on slices instead.
    """
    if numba.config.DISABLE_JIT:  # type: ignore[attr-defined]
        # Machine words wrap in silence; NumPy's scalars, which stand for them then, warn.
        return np.errstate(over="ignore")(function)
    try:
        compiled: Any = numba.njit(cache=_is_kept, nogil=True)(function)
    except RuntimeError:  # a read-only installation, and nowhere else to write
        compiled = numba.njit(nogil=True)(function)
    _forgive(compiled._cache)
    return cast(Function, compiled)


def _forgive(cache: Any) -> None:
    """Let kernels go on where their cache is broken: a file cut short by a crash, a disk that is full.

    numba raises then, where all that is lost is the time to compile, and goes on to raise in every process
    after.  What unpickling rubbish raises is nobody's promise.
    """
    load, save = cache.load_overload, cache.save_overload

    def load_overload(signature: Any, target: Any) -> Any:
        try:
            return load(signature, target)
        except Exception:  # noqa: BLE001
            with suppress(OSError):
                cache.flush()
            return None

    def save_overload(signature: Any, compiled: Any) -> None:
        with suppress(Exception):
            save(signature, compiled)

    cache.load_overload, cache.save_overload = load_overload, save_overload
