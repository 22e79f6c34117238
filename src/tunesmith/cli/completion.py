"""`tunesmith completion`."""

from __future__ import annotations

import click

__all__ = ["completion"]


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

    from tunesmith.cli.main import commands

    found = get_completion_class(shell)
    if found is None:
        raise click.UsageError(f"this version of click has no completion for {shell}")
    script = found(commands, {}, "tunesmith", "_TUNESMITH_COMPLETE").source()
    click.echo(script)
