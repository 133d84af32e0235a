"""Every finding that vhdtool can make is explained, and nothing else is.

The codes are taken out of the source: every string that looks like one, and where a function puts a code
together (``f"chain.parent.{code}"``) every argument that its callers give for the missing part.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import vhdtool
from vhdtool.report.explanations import EXPLANATIONS, explanation_of

PACKAGE = Path(vhdtool.__file__).parent
ROOTS = (
    "vhd",
    "vhdx",
    "raw",
    "image",
    "file",
    "chain",
    "tree",
    "check",
    "export",
    "verify",
    "manifest",
    "create",
    "trace",
    "zstd",
    "ewf",
)
CODE = re.compile(rf"({'|'.join(ROOTS)})(\.[a-z0-9][a-z0-9_]*)+")
PREFIX = re.compile(rf"({'|'.join(ROOTS)})(\.[a-z0-9][a-z0-9_]*)*\.")
# Strings that look like codes and are prefixes of some, or a format.
NO_CODES = {"raw.zst", "vhdx.bat", "vhdx.log"}


def modules() -> Iterator[ast.Module]:
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.name != "explanations.py":
            yield ast.parse(path.read_text(encoding="utf-8"))


def docstrings(tree: ast.Module) -> set[int]:
    return {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }


def whole_codes(tree: ast.Module) -> Iterator[str]:
    skipped = docstrings(tree)
    for node in ast.walk(tree):
        is_text = isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skipped
        if is_text and CODE.fullmatch(node.value):  # type: ignore[attr-defined]
            yield node.value  # type: ignore[attr-defined]


def composed_codes(tree: ast.Module) -> Iterator[str]:
    """Codes that a function makes of a prefix and one of its parameters."""
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef):
            continue
        for text in (node for node in ast.walk(function) if isinstance(node, ast.JoinedStr)):
            if not is_composed(text, function):
                continue
            *before, last = text.values
            for values in values_of(last, function, tree):
                for prefix in prefixes_of(before, function, tree, values[1]):
                    yield prefix + values[0]


def is_composed(text: ast.JoinedStr, function: ast.FunctionDef) -> bool:
    if not isinstance(text.values[-1], ast.FormattedValue):
        return False
    first = text.values[0]
    if isinstance(first, ast.Constant):
        return len(text.values) == 2 and PREFIX.fullmatch(str(first.value)) is not None
    default = (
        default_of(getattr(first.value, "id", ""), function)
        if isinstance(first, ast.FormattedValue)
        else None
    )
    return default is not None and PREFIX.fullmatch(default + ".") is not None


def prefixes_of(
    before: list[ast.expr], function: ast.FunctionDef, tree: ast.Module, call: ast.Call | None
) -> Iterator[str]:
    first = before[0]
    if isinstance(first, ast.Constant):
        yield str(first.value)
        return
    assert isinstance(first, ast.FormattedValue)
    assert isinstance(first.value, ast.Name)
    given = argument(call, first.value.id, function) if call is not None else None
    yield (text_of(given) if given is not None else default_of(first.value.id, function) or "") + "."


def values_of(
    part: ast.expr, function: ast.FunctionDef, tree: ast.Module
) -> Iterator[tuple[str, ast.Call | None]]:
    """What the last part can be: constants that callers give, or that a loop in the function goes through."""
    assert isinstance(part, ast.FormattedValue)
    assert isinstance(part.value, ast.Name), (
        f"{function.name}: cannot tell what {ast.unparse(part.value)} can be"
    )
    name = part.value.id
    names = [a.arg for a in (*function.args.args, *function.args.kwonlyargs)]
    if name in names:
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            called = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
            if called == function.name:
                given = argument(call, name, function)
                for text in texts_of(given):
                    yield text, call
        return
    for loop in (node for node in ast.walk(function) if isinstance(node, ast.For)):
        if isinstance(loop.target, ast.Tuple) and isinstance(loop.iter, ast.Tuple):
            places = [i for i, t in enumerate(loop.target.elts) if isinstance(t, ast.Name) and t.id == name]
            for row in loop.iter.elts:
                assert isinstance(row, ast.Tuple)
                for i in places:
                    yield text_of(row.elts[i]), None


def argument(call: ast.Call, name: str, function: ast.FunctionDef) -> ast.expr | None:
    for keyword in call.keywords:
        if keyword.arg == name:
            return keyword.value
    names = [a.arg for a in function.args.args]
    if names[:1] == ["self"] and isinstance(call.func, ast.Attribute):
        names = names[1:]
    if name in names and names.index(name) < len(call.args):
        return call.args[names.index(name)]
    return None


def texts_of(node: ast.expr | None) -> Iterator[str]:
    if isinstance(node, ast.IfExp):
        yield from texts_of(node.body)
        yield from texts_of(node.orelse)
    elif node is not None:
        yield text_of(node)


def text_of(node: ast.expr) -> str:
    assert isinstance(node, ast.Constant), f"cannot tell which code {ast.unparse(node)} is"
    assert isinstance(node.value, str)
    return node.value


def default_of(name: str, function: ast.FunctionDef) -> str | None:
    for arg, default in zip(function.args.kwonlyargs, function.args.kw_defaults):
        if arg.arg == name and isinstance(default, ast.Constant):
            return str(default.value)
    return None


@pytest.fixture(scope="module")
def codes() -> set[str]:
    found = {code for tree in modules() for code in (*whole_codes(tree), *composed_codes(tree))} - NO_CODES
    assert len(found) > 100
    return found


def test_every_code_in_the_source_has_an_explanation(codes: set[str]) -> None:
    assert sorted(codes - set(EXPLANATIONS)) == []


def test_every_explanation_has_a_code_in_the_source(codes: set[str]) -> None:
    assert sorted(set(EXPLANATIONS) - codes) == []


@pytest.mark.parametrize("code", sorted(EXPLANATIONS))
def test_an_explanation_is_one_sentence_and_an_advice(code: str) -> None:
    explanation = EXPLANATIONS[code]

    assert explanation.meaning[0].isupper()
    assert explanation.meaning.endswith(".")
    assert ". " not in explanation.meaning
    assert explanation.advice.endswith(".")
    assert re.fullmatch(r"(0xC03A00[0-2][0-9A-F])?", explanation.windows)


def test_a_strange_code_has_no_explanation() -> None:
    assert explanation_of("somebody.elses.code") is None
