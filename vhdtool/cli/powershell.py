"""Completion for PowerShell, where the installed click has none of its own."""

from __future__ import annotations

import os
import shlex
from typing import Final

from click.shell_completion import CompletionItem, ShellComplete, add_completion_class, get_completion_class

_SCRIPT: Final = """\
Register-ArgumentCompleter -Native -CommandName %(prog_name)s -ScriptBlock {
    param($wordToComplete, $commandAst, $cursorPosition)
    $env:COMP_WORDS = $commandAst.ToString()
    $env:COMP_WORD = $wordToComplete
    $env:%(complete_var)s = 'powershell_complete'
    try { $lines = @(& %(prog_name)s 2>$null) }
    finally { Remove-Item Env:COMP_WORDS, Env:COMP_WORD, Env:%(complete_var)s -ErrorAction SilentlyContinue }
    foreach ($line in $lines) {
        $type, $value, $help = $line -split "`t", 3
        if ($type -eq 'plain') {
            if (-not $help) { $help = $value }
            [System.Management.Automation.CompletionResult]::new($value, $value, 'ParameterValue', $help)
        } else {
            [System.Management.Automation.CompletionCompleters]::CompleteFilename($wordToComplete)
        }
    }
}
"""


class PowerShellComplete(ShellComplete):
    """One candidate a line: type, value and help with tabs between them."""

    name = "powershell"
    source_template = _SCRIPT

    def get_completion_args(self) -> tuple[list[str], str]:
        """The words before the cursor, and the one under it."""
        try:
            words = shlex.split(os.environ.get("COMP_WORDS", ""), posix=False)[1:]
        except ValueError:  # an open quotation mark
            words = []
        incomplete = os.environ.get("COMP_WORD", "")
        return (words[:-1] if incomplete and words else words), incomplete

    def format_completion(self, item: CompletionItem) -> str:  # type: ignore[type-arg, unused-ignore]
        """What the script above takes apart."""
        return f"{item.type}\t{item.value}\t{item.help or ''}"


def add_powershell() -> None:
    """Make click know PowerShell."""
    if get_completion_class("powershell") is None:
        add_completion_class(PowerShellComplete)
