"""How kernels are compiled: kept between processes where something can be written, else for this one.

Only kernel files import this, and only engines import those: numba costs half a second to start.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import numba

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
        base = os.environ.get("XDG_CACHE_HOME") or (f"{home}/.cache" if home else None)
    return Path(base, "vhdtool", "kernels") if base else None


if _VARIABLE not in os.environ and (folder := _cache_folder()) is not None:
    numba.config.CACHE_DIR = str(folder)  # type: ignore[attr-defined]


def kernel(function: Function) -> Function:
    """``function`` compiled when it is first called, without the GIL; never with threads of its own.

    numba's own threads do not survive a fork, or two callers at once; ours work on slices instead.
    """
    try:
        compiled: Any = numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:  # a read-only installation, and nowhere else to write
        compiled = numba.njit(nogil=True)(function)
    return cast(Function, compiled)
