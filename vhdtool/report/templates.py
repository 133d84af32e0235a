"""What every page and drawing is made with: the templates, and what stands at the foot of all of them.

Templates lie in ``pages/``.  Everything that they are given is escaped: names and texts from images come
from strangers.  Pages refer to nothing outside themselves, and say so to the browser.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

import vhdtool
from vhdtool.errors import MissingPackageError, printable
from vhdtool.report.text import instant_text

Suffix = Literal[".html", ".svg"]


@dataclass(frozen=True, slots=True)
class Made:
    """What made a picture; stands at its foot.

    Attributes:
        command: the command line, as it would be typed.
        time: when; shown in UTC.
    """

    command: str
    time: datetime
    version: str = vhdtool.__version__

    def __post_init__(self) -> None:
        object.__setattr__(self, "command", printable(self.command))

    @property
    def time_text(self) -> str:
        """``2026-11-22 17:48:06 UTC``."""
        return instant_text(self.time)


@dataclass(frozen=True, slots=True)
class Table:
    """A table for a page; ``right`` are the columns of numbers."""

    head: Sequence[str]
    rows: Sequence[Sequence[object]]
    right: frozenset[int] = field(default_factory=frozenset)

    @classmethod
    def of(cls, head: Sequence[str], rows: Iterable[Sequence[object]], texts: Iterable[int] = (0,)) -> Table:
        """A table whose columns are numbers but for those in ``texts``."""
        return cls(head, list(rows), frozenset(range(len(head))) - frozenset(texts))


def require_templates() -> None:
    """Find out before the work begins whether pages can be made.

    Raises:
        MissingPackageError: jinja2 is not installed.
    """
    _jinja2()


def render(template: str, **values: Any) -> str:
    """A template of ``pages/``, filled in.

    Raises:
        MissingPackageError: jinja2 is not installed.
    """
    package = _jinja2()
    environment = package.Environment(
        loader=package.PackageLoader("vhdtool.report", "pages"),
        autoescape=True,
        undefined=package.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["slim"] = _slim
    text: str = environment.get_template(template).render(**values)
    return text


def _slim(text: Any) -> Any:
    """A style or script without indentation, empty lines and lines of comment; stays of its type."""
    kept = (line.strip() for line in text.splitlines())
    return type(text)("\n").join(line for line in kept if line and not line.startswith("//"))


def _jinja2() -> Any:
    try:
        import jinja2
    except ImportError as error:
        raise MissingPackageError(
            "pages and drawings need the package jinja2, which comes with vhdtool[report]: "
            "pip install 'vhdtool[report]'"
        ) from error
    return jinja2
