"""Chat templates are programs: each is first run in a child process with little memory and time.

A template comes with the model, from anywhere. Jinja's sandbox keeps it from the system, not from an
endless loop or a text of gigabytes. What passes here is then rendered in this process as usual.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from tunesmith.errors import EnvironmentProblem

__all__ = ["PROBES", "main", "render_apart"]

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


def render_apart(template: str, special: Mapping[str, str]) -> dict[str, Any]:
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
    if len(template) > MOST_TEMPLATE:
        return {"error": f"it has {len(template):,} characters, {MOST_TEMPLATE:,} is the most"}
    if find_spec("jinja2") is None:
        raise EnvironmentProblem(
            "chat templates cannot be checked: jinja2 is not installed",
            fix="pip install 'tunesmith[export]'",
        )
    order = json.dumps({"template": template, "special": dict(special)})
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "tunesmith.export.check.sandbox"],
            input=order.encode("utf-8", "surrogatepass"),
            capture_output=True,
            timeout=WALL_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"it does not end within {WALL_SECONDS} s"}
    if done.returncode != 0 or len(done.stdout) > 100 * MOST_TEXT:
        return {"error": f"it takes more than {MOST_BYTES >> 20} MiB or {SECONDS} s to render"}
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def main() -> None:
    """The child: an order on stdin, the answer on stdout."""
    order = json.loads(sys.stdin.buffer.read().decode("utf-8", "surrogatepass"))
    _limit()
    sys.stdout.write(json.dumps(_render(order["template"], order["special"])))


def _limit() -> None:
    try:
        import resource
    except ImportError:
        return  # Windows: the parent's time limit remains.
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))


def _render(template: str, special: Mapping[str, str]) -> dict[str, Any]:
    from jinja2.exceptions import TemplateError, TemplateSyntaxError

    try:
        compiled = _environment().from_string(template)
    except TemplateSyntaxError as error:
        return {"error": f"line {error.lineno}: {error.message}"}
    texts: list[list[str] | None] = []
    refused: list[str] = []
    for probe in PROBES:
        try:
            texts.append([_text(compiled, probe, special, opening) for opening in (False, True)])
        except (
            TemplateError,
            TypeError,
            ValueError,
            KeyError,
            IndexError,
            ArithmeticError,
        ) as error:
            refused.append(f"{type(error).__name__}: {error}"[:300])
            texts.append(None)
        except (MemoryError, RecursionError) as error:
            return {"error": f"{type(error).__name__} while it renders {len(probe)} turns"}
    return {"texts": texts, "refused": refused}


def _text(
    compiled: Any, probe: Sequence[Mapping[str, str]], special: Mapping[str, str], opening: bool
) -> str:
    text = compiled.render(
        messages=[dict(message) for message in probe],
        tools=None,
        documents=None,
        add_generation_prompt=opening,
        **special,
    )
    if len(text) > MOST_TEXT:
        raise MemoryError
    return str(text)


def _environment() -> Any:
    """Jinja as transformers sets it up (`transformers.utils.chat_template_utils`)."""
    from datetime import datetime

    from jinja2 import ext
    from jinja2.exceptions import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(ext.Extension):
        """`{% generation %}`, which marks an assistant's text and writes nothing."""

        tags = {"generation"}  # noqa: RUF012 - as jinja2 declares it

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, ext.loopcontrols]
    )
    environment.filters["tojson"] = lambda value, **options: json.dumps(
        value, ensure_ascii=False, **{k: v for k, v in options.items() if k == "indent"}
    )
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


if __name__ == "__main__":
    main()
