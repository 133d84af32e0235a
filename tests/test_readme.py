"""The README's tour shows what its commands print, and its two commands are the ones that CI runs."""

from __future__ import annotations

import os
from difflib import unified_diff
from pathlib import Path

import pytest

from fixtures.tour import ROOT, Tour, agrees, rewrite, shortened, steps

README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.skipif(os.name == "nt", reason="the tour is typed into a POSIX shell")
def test_every_command_of_the_tour_prints_what_the_readme_shows(tmp_path: Path) -> None:
    tour = Tour(tmp_path)

    for step in steps(README):
        printed = tour.run(step.command)

        difference = "\n".join(unified_diff(step.shown, printed, "README.md", step.command, lineterm=""))
        assert agrees(list(step.shown), printed), f"python -m fixtures.tour would repair this:\n{difference}"


def test_the_tour_visits_every_command_that_looks_at_images() -> None:
    commands = {word for step in steps(README) for word in step.command.split()}

    assert {
        "info",
        "chain",
        "tree",
        "check",
        "map",
        "read",
        "export",
        "verify",
        "compare",
        "diff",
    } <= commands
    assert {"create", "snapshot", "merge"} <= commands


@pytest.mark.parametrize("command", ["sh scripts/demo.sh", "sh scripts/test.sh"])
def test_both_commands_of_the_readme_are_run_by_ci(command: str) -> None:
    assert f"\n{command}\n" in README
    assert command in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_steps_are_commands_with_the_lines_below_them() -> None:
    text = "a\n```console\n$ one\n1\n2\n$ two\n```\n```sh\n$ not this\n```\n"

    found = list(steps(text))

    assert [(step.command, step.shown) for step in found] == [("one", ("1", "2")), ("two", ())]
    assert [text[slice(*step.span)] for step in found] == ["1\n2\n", ""]


@pytest.mark.parametrize(
    ("shown", "printed", "verdict"),
    [
        (["a", "b"], ["a", "b"], True),
        (["a"], ["a", "b"], False),
        (["a", "b"], ["a"], False),
        (["a", "...", "d"], ["a", "b", "c", "d"], True),
        (["a", "..."], ["a"], True),
        (["...", "d"], ["a", "b"], False),
    ],
)
def test_dots_stand_for_any_lines(shown: list[str], printed: list[str], verdict: bool) -> None:
    assert agrees(shown, printed) is verdict


@pytest.mark.skipif(os.name == "nt", reason="the tour is typed into a POSIX shell")
def test_rewriting_replaces_what_is_wrong_and_nothing_else(tmp_path: Path) -> None:
    text = "```console\n$ echo a\nb\n$ echo c\n...\n```\nend\n"

    assert rewrite(text, tmp_path) == "```console\n$ echo a\na\n$ echo c\n...\n```\nend\n"


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (["a"], ["1", "2", "3", "4"]),
        (["a", "...", "c"], ["1", "...", "4"]),
        (["a", "b", "..."], ["1", "2", "..."]),
        (["a", "...", "b", "c", "d"], ["1", "2", "3", "4"]),
    ],
)
def test_what_was_shortened_stays_short(shown: list[str], expected: list[str]) -> None:
    assert shortened(shown, ["1", "2", "3", "4"]) == expected
