"""`tunesmith completion`."""

from __future__ import annotations

import click
from click.shell_completion import (
    BashComplete,
    CompletionItem,
    FishComplete,
    ShellComplete,
    ZshComplete,
    add_completion_class,
)

__all__ = ["completion", "offer_files"]


class _OrFiles(ShellComplete):
    """Files where a command has nothing else to offer; click offers none for a plain argument."""

    def get_completions(self, args: list[str], incomplete: str) -> list[CompletionItem]:
        found = super().get_completions(args, incomplete)
        return found or [CompletionItem(incomplete, type="file")]


class _Bash(_OrFiles, BashComplete):
    pass


class _Zsh(_OrFiles, ZshComplete):
    pass


class _Fish(_OrFiles, FishComplete):
    pass


def offer_files() -> None:
    """Let the shells that are known complete names of files, too."""
    for shell in (_Bash, _Zsh, _Fish):
        add_completion_class(shell, shell.name)


@click.command
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a shell's completion script.

    \b
    Examples:
      eval "$(tunesmith completion bash)"                       in ~/.bashrc
      eval "$(tunesmith completion zsh)"                        in ~/.zshrc
      tunesmith completion fish > ~/.config/fish/completions/tunesmith.fish
    """
    from click.shell_completion import get_completion_class

    from tunesmith.cli.main import COMPLETE, commands

    found = get_completion_class(shell)
    if found is None:
        raise click.UsageError(f"this version of click has no completion for {shell}")
    script = found(commands, {}, "tunesmith", COMPLETE).source()
    click.echo(script)
