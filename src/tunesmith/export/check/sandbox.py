"""Chat templates are programs: a check runs them in a child process with little memory and time alone.

A template comes with the model, from anywhere. Jinja's sandbox keeps it from the system, not from an
endless loop or a text of gigabytes.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from secrets import token_hex
from typing import Any

from tunesmith.errors import EnvironmentProblem

__all__ = ["PROBES", "main", "render_apart", "write_all"]

Order = tuple[Sequence[Mapping[str, Any]], bool]
"""A conversation, and whether an answer is to be opened after it."""
Written = tuple[str | None, str]
"""Its text, or None and why the template refuses it."""

SECONDS = 3
"""Of the processor."""
WALL_SECONDS = 60
MOST_BYTES = 1 << 30
MOST_TEXT = 1 << 20
MOST_TEMPLATE = 1 << 20
ANSWER = "aN5wer2"

PROBES: tuple[tuple[dict[str, str], ...], ...] = (
    ({"role": "user", "content": "Hi"},),
    ({"role": "user", "content": "Hi"}, {"role": "assistant", "content": ANSWER}),
    (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": ANSWER},
        {"role": "user", "content": "Sure?"},
    ),
)


def render_apart(template: str, special: Mapping[str, Any]) -> dict[str, Any]:
    """The probes as a template writes them.

    Args:
        template: Jinja source.
        special: texts such as `bos_token`, which templates may name.

    Returns:
        {"texts": [[without, with generation prompt] a probe]}, None where the template refuses one,
        and "refused": its reasons; or {"error": why it cannot be rendered at all}.

    Raises:
        EnvironmentProblem: jinja2 is not installed.
    """
    orders = [(probe, opening) for probe in PROBES for opening in (False, True)]
    written = write_all(template, special, orders)
    if isinstance(written, str):
        return {"error": written}
    texts: list[list[str] | None] = []
    refused: list[str] = []
    for without, opened in zip(written[::2], written[1::2], strict=True):
        reasons = [reason for text, reason in (without, opened) if text is None]
        refused += reasons[:1]
        texts.append(None if reasons else [without[0] or "", opened[0] or ""])
    return {"texts": texts, "refused": refused}


def write_all(
    template: str, special: Mapping[str, Any], orders: Sequence[Order]
) -> list[Written] | str:
    """Conversations as a template writes them, all in one child; or why it cannot be rendered at all.

    One conversation more is written and thrown away, of words that no template can know before: it is
    not enough to behave well for the probes alone.

    Args:
        template: Jinja source.
        special: what else the template may name, such as `bos_token`.

    Raises:
        EnvironmentProblem: jinja2 is not installed.
    """
    if len(template) > MOST_TEMPLATE:
        return f"it has {len(template):,} characters, {MOST_TEMPLATE:,} is the most"
    if find_spec("jinja2") is None:
        raise EnvironmentProblem(
            "chat templates cannot be checked: jinja2 is not installed",
            fix="pip install 'tunesmith[export]'",
        )
    unknown = [{"role": role, "content": token_hex(8)} for role in ("user", "assistant", "user")]
    every = [*orders, (unknown[:1], True), (unknown, True)]
    order = json.dumps({"template": template, "special": dict(special), "orders": every})
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "tunesmith.export.check.sandbox"],
            input=order.encode("utf-8", "surrogatepass"),
            capture_output=True,
            timeout=WALL_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"it does not end within {WALL_SECONDS} s"
    if done.returncode != 0 or len(done.stdout) > 100 * MOST_TEXT:
        return f"it takes more than {MOST_BYTES >> 20} MiB or {SECONDS} s to render"
    answer = json.loads(done.stdout)
    if isinstance(answer, str):
        return answer
    return [(text, reason) for text, reason in answer[: len(orders)]]


def main() -> None:
    """The child: an order on stdin, the answer on stdout."""
    order = json.loads(sys.stdin.buffer.read().decode("utf-8", "surrogatepass"))
    _limit()
    sys.stdout.write(json.dumps(_render(order["template"], order["special"], order["orders"])))


def _limit() -> None:
    try:
        import resource
    except ImportError:
        return  # Windows: the parent's time limit remains.
    for kind, most in ((resource.RLIMIT_CPU, SECONDS), (resource.RLIMIT_AS, MOST_BYTES)):
        _, hard = resource.getrlimit(kind)
        least = (
            most if hard == resource.RLIM_INFINITY else min(most, hard)
        )  # It may be lowered only.
        resource.setrlimit(kind, (least, least))


def _render(
    template: str, special: Mapping[str, Any], orders: Sequence[Order]
) -> list[Written] | str:
    from jinja2.exceptions import TemplateError, TemplateSyntaxError

    try:
        compiled = _environment().from_string(template)
    except TemplateSyntaxError as error:
        return f"line {error.lineno}: {error.message}"
    written: list[Written] = []
    for messages, opening in orders:
        try:
            written.append((_text(compiled, messages, special, opening), ""))
        except (MemoryError, RecursionError) as error:
            return f"{type(error).__name__} while it renders {len(messages)} turns"
        except (
            TemplateError,
            TypeError,
            ValueError,
            LookupError,
            AttributeError,
            ArithmeticError,
        ) as error:
            written.append((None, f"{type(error).__name__}: {error}"[:300]))
    return written


def _text(
    compiled: Any, messages: Sequence[Mapping[str, Any]], special: Mapping[str, Any], opening: bool
) -> str:
    text = compiled.render(
        messages=[dict(message) for message in messages],
        tools=None,
        documents=None,
        add_generation_prompt=opening,
        **special,
    )
    if len(text) > MOST_TEXT:
        raise MemoryError
    text.encode("utf-8")  # A half of a surrogate pair is no text: this refuses it.
    return str(text)


def _as_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _environment() -> Any:
    """Jinja as transformers sets it up (`transformers.utils.chat_template_utils`)."""
    from datetime import datetime

    from jinja2 import ext, nodes
    from jinja2.exceptions import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(ext.Extension):
        """`{% generation %}`, which marks an assistant's text and writes nothing of its own."""

        tags = {"generation"}  # noqa: RUF012 - as jinja2 declares it

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            call = self.call_method("_as_it_is")
            return nodes.CallBlock(call, [], [], body).set_lineno(line)

        def _as_it_is(self, caller: Any) -> Any:
            return caller()

    def refuse(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, ext.loopcontrols]
    )
    environment.filters["tojson"] = _as_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


if __name__ == "__main__":
    main()
