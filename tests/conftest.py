"""What all tests share: the Hypothesis profile, real images, and hiding what a platform lacks."""

from __future__ import annotations

import bz2
import gzip
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

# Who runs the tests in the background may have Ctrl-C ignored, and what they start would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# One run of the suite pretends to be a platform without these calls (see .ci/run).
if os.environ.get("VHDTOOL_TEST_HIDE_PLATFORM"):
    for _name in (
        "pread",
        "preadv",
        "pwrite",
        "pwritev",
        "copy_file_range",
        "SEEK_DATA",
        "SEEK_HOLE",
        "posix_fallocate",
    ):
        if hasattr(os, _name):
            delattr(os, _name)
    sys.modules["fcntl"] = None  # type: ignore[assignment]

from hypothesis import HealthCheck, settings

settings.register_profile(
    "vhdtool",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
# For tests that run other tests in some mode.
settings.register_profile("vhdtool-few", settings.get_profile("vhdtool"), max_examples=8)
settings.load_profile("vhdtool")

ROOT = Path(__file__).resolve().parent.parent
SHARED_IMAGES = ROOT.parent / "shared" / "images"


@pytest.fixture(scope="session")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Gives a sparse, unpacked copy of a shared image by its path there, ``.gz``/``.bz2`` left out."""
    folder = tmp_path_factory.mktemp("shared-images")
    done: dict[str, Path] = {}

    def unpack(name: str) -> Path:
        if not SHARED_IMAGES.is_dir():
            pytest.skip("the shared images are not beside this checkout")
        if name not in done:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            packed = {suffix: SHARED_IMAGES / (name + suffix) for suffix in ("", ".gz", ".bz2")}
            openers: dict[str, Callable[..., object]] = {"": open, ".gz": gzip.open, ".bz2": bz2.open}
            suffix = next(s for s, p in packed.items() if p.is_file())
            with openers[suffix](packed[suffix], "rb") as source, target.open("wb") as sink:  # type: ignore[attr-defined]
                while data := source.read(1 << 16):
                    if data.count(0) == len(data):
                        sink.seek(len(data), os.SEEK_CUR)
                    else:
                        sink.write(data)
                sink.truncate()
            done[name] = target
        return done[name]

    return unpack
