"""Ollama's Modelfile. What the format cannot hold is left out, with a comment that says so.

Quoting follows Ollama's parser (ollama/parser/parser.go): a value between triple quotes ends at the
first line whose end makes the value so far end with triple quotes, nothing can be escaped, and
characters that Go does not call printable are dropped, except line ends, spaces and tabs. So every
value is read back by the same rules before it is written.
"""

from __future__ import annotations

from tunesmith.export.gotemplate import derive
from tunesmith.models.chat import ChatRenderer

__all__ = ["modelfile", "parse", "quoted"]


def modelfile(renderer: ChatRenderer, gguf_name: str, system: str | None) -> str:
    """The Modelfile's text.

    Args:
        renderer: its template and stop tokens.
        gguf_name: the GGUF file beside it.
        system: the system text of every training row, or None.
    """
    wanted = [("model", f"./{gguf_name}")]
    lines = [
        "# Make an Ollama model of this folder:  ollama create NAME -f Modelfile",
        f"FROM ./{gguf_name}",
        "",
        "# Answers were judged with greedy decoding.",
        "PARAMETER temperature 0",
    ]
    wanted.append(("temperature", "0"))
    for token in renderer.stop_ids:
        text = renderer.decode([token], special=True)
        value = quoted(text)
        if value is not None:
            lines.append(f"PARAMETER stop {value}")
            wanted.append(("stop", text))
    template, why = derive(renderer)
    value = None if template is None else quoted(template)
    if template is not None and value is not None:
        lines += ["", f"TEMPLATE {value}"]
        wanted.append(("template", template))
    else:
        reason = why or "its text cannot be written in a Modelfile"
        lines += ["", *_no_template(reason)]
    lines += _system_lines(system, wanted)
    text = "\n".join(lines) + "\n"
    if parse(text) != wanted:
        raise AssertionError("the Modelfile does not read back as it was written")
    return text


def _no_template(reason: str) -> list[str]:
    return [
        "# There is no TEMPLATE: the model's chat template has no proved equal in Go's language,",
        f"# because {_one_line(reason)}.",
        "# Ollama then looks at the template inside the GGUF file. Compare what it chose with",
        "# tokenizer/chat_template.jinja:  ollama show --template NAME",
    ]


def _system_lines(system: str | None, wanted: list[tuple[str, str]]) -> list[str]:
    if system is None:
        return []
    value = quoted(system)
    if value is None:
        return [
            "",
            "# There is no SYSTEM: the system text of the training rows holds characters that a",
            "# Modelfile cannot hold. Send it with each request.",
        ]
    wanted.append(("system", system))
    return ["", "# The system message of every training row.", f"SYSTEM {value}"]


def _one_line(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)


def quoted(text: str) -> str | None:
    """`text` as a Modelfile value, or None when no quoting brings it back unchanged."""
    for quotes in ('"""', '"'):
        value = f"{quotes}{text}{quotes}"
        try:
            if parse(f"FROM x\nSYSTEM {value}\nLICENSE y\n")[1:] == [
                ("system", text),
                ("license", "y"),
            ]:
                return value
        except ValueError:
            continue
    return None


_COMMANDS = frozenset(
    {
        *("from", "license", "template", "system", "adapter", "draft"),
        *("renderer", "parser", "parameter", "message", "requires"),
    }
)


def parse(text: str) -> list[tuple[str, str]]:
    """Commands of a Modelfile as Ollama's parser reads them: (name, value) in order.

    Raises:
        ValueError: Ollama would refuse the file, or it holds MESSAGE, which we do not write.
    """
    commands: list[tuple[str, str]] = []
    state, name, buffer = "nil", "", ""
    for char in text.removeprefix("\ufeff"):
        following, kept = _next_state(state, char)
        if following != state:
            if state == "name":
                name = buffer.lower()
                if name not in _COMMANDS or name == "message":
                    raise ValueError(f"unknown command {buffer!r}")
                following = "parameter" if name == "parameter" else following
            elif state == "parameter":
                name = buffer
            elif state == "value":
                value = _unquoted(buffer)
                if value is None or char in " \t":
                    buffer += char
                    continue
                commands.append(("model" if name == "from" else name, value))
            buffer, state = "", following
        if kept and char.isprintable():
            buffer += char
    return _flushed(commands, state, name, buffer)


def _flushed(
    commands: list[tuple[str, str]], state: str, name: str, buffer: str
) -> list[tuple[str, str]]:
    """The commands with the one that the file's end completes."""
    if state == "value":
        value = _unquoted(buffer)
        if value is None:
            raise ValueError("the file ends inside a value")
        commands.append(("model" if name == "from" else name, value))
    elif state not in ("nil", "comment"):
        raise ValueError("the file ends inside a command")
    if not any(command == "model" for command, _ in commands):
        raise ValueError("no FROM line")
    return commands


def _next_state(state: str, char: str) -> tuple[str, bool]:
    """Ollama's `parseRuneForState`: the state after a character, and whether it is kept."""
    space, newline = char in " \t", char in "\r\n"
    if state == "nil":
        if char == "#":
            return "comment", False
        return ("nil", False) if space or newline else ("name", True)
    if state == "comment":
        return ("nil", False) if newline else ("comment", False)
    if state == "value":
        return ("nil", True) if space or newline else ("value", True)
    allowed = char.isascii() and (
        char.isalpha() if state == "name" else char.isalnum() or char == "_"
    )
    if not allowed and not space:
        raise ValueError(f"{char!r} in the name of a command")
    return (state, True) if allowed else ("value", False)


def _unquoted(buffer: str) -> str | None:
    text = buffer.strip()
    for quotes in ('"""', '"'):
        if text.startswith(quotes):
            whole = len(text) >= 2 * len(quotes) and text.endswith(quotes)
            return text[len(quotes) : -len(quotes)] if whole else None
    return text
