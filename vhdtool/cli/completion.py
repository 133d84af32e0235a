"""``vhdtool completion SHELL``."""

from __future__ import annotations

import click
from click.shell_completion import ShellComplete, get_completion_class

from vhdtool.cli.app import COMPLETE_VARIABLE, cli
from vhdtool.cli.powershell import add_powershell


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish", "powershell"]))
def command(shell: str) -> None:
    """Print the completion script of a shell.

    \b
    bash:        eval "$(vhdtool completion bash)"              in ~/.bashrc
    zsh:         eval "$(vhdtool completion zsh)"               in ~/.zshrc
    fish:        vhdtool completion fish > ~/.config/fish/completions/vhdtool.fish
    powershell:  vhdtool completion powershell | Out-String | Invoke-Expression
    """
    add_powershell()
    known = get_completion_class(shell)
    assert known is not None
    completion = known(cli, {}, "vhdtool", COMPLETE_VARIABLE)
    # The base class's method: bash's own would start a bash to look at its version, which need not be there.
    click.echo(ShellComplete.source(completion), nl=False)
