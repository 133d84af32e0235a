"""The reference page says what the program does."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import click
import pytest

from vhdtool.cli.app import COMMANDS, cli

DOCS = Path(__file__).resolve().parent.parent.parent / "docs"


def section(name: str) -> str:
    text = (DOCS / "reference.md").read_text(encoding="utf-8")
    return text.split(f"\n## {name}\n")[1].split("\n## ")[0]


@pytest.fixture(scope="module")
def update() -> ModuleType:
    spec = importlib.util.spec_from_file_location("update_reference", DOCS / "update_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_of_findings_is_that_of_today(update: ModuleType) -> None:
    text = (DOCS / "reference.md").read_text(encoding="utf-8")

    assert text == update.updated(text), "run docs/update_reference.py"


def options_of(command: click.Command | None) -> set[str]:
    """Its options, and those of its commands when it is a group."""
    assert command is not None
    options = {
        o
        for parameter in command.params
        if isinstance(parameter, click.Option)
        for o in (*parameter.opts, *parameter.secondary_opts)
    }
    if isinstance(command, click.Group):
        options.update(*map(options_of, command.commands.values()))
    return options


@pytest.mark.parametrize("name", COMMANDS)
def test_a_commands_section_names_each_of_its_options(name: str) -> None:
    for option in options_of(cli.get_command(click.Context(cli), name)):
        assert option in section(name), option


@pytest.mark.parametrize("name", COMMANDS)
def test_a_commands_section_names_no_option_that_it_lacks(name: str) -> None:
    known = options_of(cli.get_command(click.Context(cli), name))
    usage = section(name).split("```")[1]

    # A path in square brackets is no option; what begins with two dashes is.
    assert set(re.findall(r"--[a-z][a-z-]*", usage)) <= known


def test_every_json_example_is_json() -> None:
    text = (DOCS / "reference.md").read_text(encoding="utf-8")
    examples = re.findall(r"```json\n(.*?)```", text, re.DOTALL)

    assert len(examples) >= 10
    for example in examples:
        json.loads(example)


def test_every_exit_code_of_the_errors_is_listed() -> None:
    from vhdtool import errors
    from vhdtool.cli.faults import EXIT_FAULT

    codes = {value for name, value in vars(errors).items() if name.startswith("EXIT_")} | {EXIT_FAULT, 0, 2}
    listed = {int(code) for code in re.findall(r"^\| (\d+) \|", section("Exit codes"), re.MULTILINE)}

    assert listed == codes
