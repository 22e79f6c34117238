"""The one chat renderer: a conversation to tokens, with a role and a trained flag for each token.

Training masks, evaluation prompts, the exported Modelfile and the gateway all call it, so what was
trained is what is asked. The text comes from the model's own chat template. The roles come from
rendering growing prefixes of the conversation, which works with any template whose output for the
first messages does not change when more messages follow; one that breaks this is refused.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.errors import ModelError, listed
from tunesmith.models.refusals import REFUSALS, encoding, refuse_unfit
from tunesmith.models.templates import with_one_template, written
from tunesmith.store import Artifact

__all__ = ["ChatRenderer", "Rendered", "Role", "Size", "probe_conversations", "turns_of"]

Message = Mapping[str, Any]
Writer = Callable[[Any, Sequence[Message], bool], str]
"""Tokenizer, conversation and whether an answer is to be opened -> text."""
Role = str
TEMPLATE: Role = "template"
"""Role of the tokens that the template adds: markers, role names, line ends."""

_STOP_PROBE = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"})
_PROBES: tuple[tuple[dict[str, str], ...], ...] = (
    ({"role": "user", "content": "Hi"},),
    (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "  2 + 2?\n"},
        {"role": "assistant", "content": "4"},
        {"role": "user", "content": "Ünïcode: 你好, tab\there"},
        {"role": "assistant", "content": "ok <b>done</b>"},
    ),
)


def probe_conversations() -> Iterator[Sequence[Message]]:
    """All that a renderer writes to know its stop tokens and its fingerprint: probes from their start on."""
    for probe in (_STOP_PROBE, *_PROBES):
        yield from (probe[: end + 1] for end in range(len(probe)))


def turns_of(row: Mapping[str, Any]) -> list[Message]:
    """The conversation of a sealed row; of a pair of answers the prompt and the chosen one."""
    if "messages" in row:
        return list(row["messages"])
    return [*row["prompt"], *row["chosen"]]


@dataclass(frozen=True)
class Rendered:
    """A conversation as the model reads it. All tuples have one entry a token.

    Attributes:
        token_ids: what goes in.
        roles: "template", "system", "user", "assistant" or "tool".
        trained: whether the loss counts this token: an assistant's text and its stop token.
        text: the same conversation as text.
    """

    token_ids: tuple[int, ...]
    roles: tuple[Role, ...]
    trained: tuple[bool, ...]
    text: str


@dataclass(frozen=True, slots=True)
class Size:
    """How large a conversation is, without its tokens.

    Attributes:
        n_tokens: as many as `Rendered.token_ids`.
        n_trained: those of them that the loss counts.
        stops: whether the last of these ends an answer.
    """

    n_tokens: int
    n_trained: int
    stops: bool


@dataclass(frozen=True)
class _Piece:
    """A stretch of text that is cut into tokens on its own.

    Attributes:
        spans: (start, end, role) of the contents in it, in characters; the rest is the template's.
        trained: whether its tokens count in the loss.
        literal: control tokens in it are spelled out, not obeyed.
    """

    text: str
    spans: tuple[tuple[int, int, Role], ...] = ()
    trained: bool = False
    literal: bool = False


class ChatRenderer:
    """Renders conversations with one tokenizer and its chat template.

    Args:
        tokenizer: a Hugging Face tokenizer with a chat template.
        write: runs the template.

    Raises:
        ModelError: the tokenizer has no chat template, several without a default, or no end-of-sequence
            token, or makes no tokens.

    Attributes:
        tokenizer: with the one template that is used.
        other_templates: names of the templates that the tokenizer was given with and that are not used.
    """

    def __init__(self, tokenizer: Any, write: Writer = written) -> None:
        self._write = write
        tokenizer, self.other_templates = with_one_template(tokenizer)
        self.tokenizer = tokenizer
        refuse_unfit(tokenizer)
        self._special = _special_texts(tokenizer)
        self._stop_text = self._find_stop_text()
        self._stop_ids = self._find_stop_ids()

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer: the one that the template writes, and the tokenizer's own."""
        return self._stop_ids

    def _find_stop_ids(self) -> tuple[int, ...]:
        written, _ = self._encode(self._stop_text)
        own = (int(self.tokenizer.eos_token_id),)
        return tuple(dict.fromkeys((*written, *own))) if len(written) == 1 else own

    @property
    def control_tokens(self) -> tuple[str, ...]:
        """Texts that are control tokens; in a turn's content they are spelled out, not obeyed."""
        return self._special

    @property
    def template(self) -> str:
        """The chat template's source (Jinja)."""
        return str(self.tokenizer.chat_template)

    @property
    def probe(self) -> str:
        """The probe conversations as rendered: a line a token, with id, role, and * when trained."""
        renders = [*map(self.render, _PROBES), self.render(_PROBES[0], for_answer=True)]
        return "\n".join(
            f"{token} {role}{'*' if on else ''} {self.decode([token], special=True)!r}"
            for rendered in renders
            for token, role, on in zip(
                rendered.token_ids, rendered.roles, rendered.trained, strict=True
            )
        )

    @property
    def fingerprint(self) -> str:
        """Hash of `probe`: equal means the same prompts, token by token."""
        return hashlib.sha256(self.probe.encode()).hexdigest()

    def as_facts(self) -> dict[str, str]:
        """What an artifact stores, for `check_same` to compare with later."""
        return {"renderer_fingerprint": self.fingerprint, "renderer_probe": self.probe}

    def check_same(self, sealed: Artifact) -> None:
        """Refuse to go on with other prompts than a sealed artifact was made with.

        Raises:
            ModelError: the fingerprints differ; the message shows the first lines that do.
        """
        if self.fingerprint == sealed.facts["renderer_fingerprint"]:
            return
        before = str(sealed.facts.get("renderer_probe", "")).splitlines()
        changes = [
            line
            for line in difflib.unified_diff(before, self.probe.splitlines(), lineterm="", n=0)
            if not line.startswith(("---", "+++", "@@"))
        ]
        raise ModelError(
            f"{sealed.dir} was made with other prompts than this tokenizer and version make "
            f"(- then, + now; token, role, text):\n{listed(changes, limit=12)}",
            why=f"renderer fingerprint {str(sealed.facts['renderer_fingerprint'])[:12]} then, "
            f"{self.fingerprint[:12]} now: the model would be asked otherwise than it was trained",
            fix=f"use the tokenizer and the version that made it ({sealed.version}), or make it again",
        )

    def render(self, messages: Sequence[Message], *, for_answer: bool = False) -> Rendered:
        """Tokens of a conversation, each with its role and trained flag.

        Args:
            messages: role and content of each turn.
            for_answer: end with the opening of an assistant's turn, for the model to go on.

        Raises:
            ModelError: the template refuses the conversation, or rewrites earlier turns.
        """
        pieces = [p for p in self._pieces(messages, for_answer=for_answer) if p.text]
        token_ids: list[int] = []
        roles: list[Role] = []
        trained: list[bool] = []
        for piece in pieces:
            ids, places = self._encode(piece.text, literal=piece.literal)
            token_ids += ids
            roles += [_role_of(piece.spans, *place) for place in places]
            trained += [piece.trained] * len(ids)
        text = "".join(piece.text for piece in pieces)
        return Rendered(tuple(token_ids), tuple(roles), tuple(trained), text)

    def measure(
        self, conversations: Sequence[Sequence[Message]], *, for_answer: bool = False
    ) -> list[Size | ModelError]:
        """The sizes of what `render` gives, in half of its time or less: texts are cut together.

        A conversation that `render` would refuse has its refusal in the list.
        """
        found: list[list[_Piece] | ModelError] = []
        for messages in conversations:
            try:
                pieces = self._pieces(messages, for_answer=for_answer)
                found.append([piece for piece in pieces if piece.text])
            except ModelError as error:
                found.append(error)
        every = [piece for one in found if isinstance(one, list) for piece in one]
        known = {
            (literal, text): ids
            for literal in (False, True)
            for text, ids in self._cut([p.text for p in every if p.literal is literal], literal)
        }
        return [
            one
            if isinstance(one, ModelError)
            else self._size([(known[piece.literal, piece.text], piece.trained) for piece in one])
            for one in found
        ]

    def _cut(self, texts: Sequence[str], literal: bool) -> Iterator[tuple[str, list[int]]]:
        """Each different text with its tokens; as `_encode`, of many at once and without places."""
        different = list(dict.fromkeys(texts))
        if different:
            with encoding():
                encoded = self.tokenizer(
                    different,
                    add_special_tokens=False,
                    return_attention_mask=False,
                    split_special_tokens=literal,
                )
            yield from zip(different, encoded["input_ids"], strict=True)

    def _size(self, pieces: Sequence[tuple[list[int], bool]]) -> Size:
        trained = [ids for ids, is_trained in pieces if is_trained and ids]
        n_trained = sum(map(len, trained))
        stops = bool(trained) and trained[-1][-1] in self.stop_ids
        return Size(sum(len(ids) for ids, _ in pieces), n_trained, stops)

    def prompt_ids(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Tokens to generate an answer from."""
        return self.render(messages, for_answer=True).token_ids

    def decode(self, token_ids: Sequence[int], *, special: bool = False) -> str:
        """Text of tokens; control tokens are left out unless `special`."""
        text = self.tokenizer.decode(
            list(token_ids), skip_special_tokens=not special, clean_up_tokenization_spaces=False
        )
        return str(text)

    def _encode(
        self, text: str, *, literal: bool = False
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids of a text, and the characters from which to which each goes."""
        with encoding():
            encoded = self.tokenizer(
                text,
                add_special_tokens=False,
                return_offsets_mapping=True,
                split_special_tokens=literal,
            )
        return list(encoded["input_ids"]), list(encoded["offset_mapping"])

    def _text(self, messages: Sequence[Message], *, for_answer: bool) -> str:
        from jinja2.exceptions import TemplateError

        refusals: tuple[type[Exception], ...] = (TemplateError, *REFUSALS)
        try:
            return self._write(self.tokenizer, messages, for_answer)
        except refusals as error:
            raise ModelError(
                f"the model's chat template refuses a conversation: {error}",
                why="roles in it: " + ", ".join(str(message.get("role")) for message in messages),
                fix="change the order of the turns, or drop the roles the template does not know",
            ) from error

    def _pieces(self, messages: Sequence[Message], *, for_answer: bool) -> list[_Piece]:
        """Cut the rendered text where an assistant's turn starts and ends."""
        _refuse_calls(messages)
        whole = self._text(messages, for_answer=for_answer)
        pieces: list[_Piece] = []
        done = 0
        pending: list[Message] = []
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                pending.append(message)
                continue
            opened = self._prefix(messages[:index], whole, for_answer=True)
            is_last = index + 1 == len(messages) and not for_answer
            closed = (
                len(whole)
                if is_last
                else self._prefix(messages[: index + 1], whole, for_answer=False)
            )
            pieces += self._prompt(whole[done:opened], pending)
            answer = self._answer(whole[opened:closed], message)
            pieces += answer
            done, pending = opened + sum(len(piece.text) for piece in answer), []
        return pieces + self._prompt(whole[done:], pending)

    def _prompt(self, text: str, messages: Sequence[Message]) -> list[_Piece]:
        """A stretch without answers: one piece, unless a content spells a control token."""
        spans = tuple(_content_spans(text, messages))
        if not any(token in text[a:b] for a, b, _ in spans for token in self._special):
            return [_Piece(text, spans)]
        pieces: list[_Piece] = []
        position = 0
        for start, end, role in spans:
            pieces.append(_Piece(text[position:start]))
            pieces.append(_Piece(text[start:end], ((0, end - start, role),), literal=True))
            position = end
        return [*pieces, _Piece(text[position:])]

    def _prefix(self, messages: Sequence[Message], whole: str, *, for_answer: bool) -> int:
        text = self._text(messages, for_answer=for_answer)
        if not whole.startswith(text):
            raise ModelError(
                "the model's chat template rewrites earlier turns when later ones follow",
                why="so the tokens of an answer cannot be told apart with certainty",
                fix="keep one assistant turn in each row, or use a model with another template",
            )
        return len(text)

    def _answer(self, text: str, message: Message) -> list[_Piece]:
        """Content and stop token are trained; what the template writes after the stop is not.

        A turn of OpenAI's `weight` 0 is an example of what came before, and not trained.
        """
        content, trained = str(message["content"]), message.get("weight") != 0
        stop = self._stop_text
        body = content if text.startswith(content) else content.strip()
        end = len(body) + len(stop)
        if not text.startswith(body) or text[len(body) : end] != stop:
            raise ModelError(
                f"the model's chat template changes an answer: {content[:80]!r} became {text[:80]!r}",
                why="the trained tokens would not be the assistant's text and its stop token",
                fix="use a model whose template writes answers as they are",
            )
        return [
            _Piece(body, ((0, len(body), "assistant"),), trained=trained, literal=True),
            _Piece(stop, ((0, len(stop), "assistant"),), trained=trained),
        ]

    def _find_stop_text(self) -> str:
        """What the template writes right after an answer: one control token, such as `<|im_end|>`."""
        opened = self._text(_STOP_PROBE[:1], for_answer=True)
        closed = self._text(_STOP_PROBE, for_answer=False)
        tail = closed[len(opened) :].removeprefix("b") if closed.startswith(opened) else ""
        stop = next((token for token in self._special if tail.startswith(token)), None)
        if stop is None:
            raise ModelError(
                f"the model's chat template writes no stop token after an answer, but {tail[:40]!r}",
                why="a model trained on it would never learn to stop",
                fix="use a model whose template closes the assistant's turn with a control token",
            )
        return stop


def _refuse_calls(messages: Sequence[Message]) -> None:
    """Templates write a turn without text in ways of their own, or as the word None."""
    for number, message in enumerate(messages, 1):
        if message["role"] == "assistant" and not isinstance(message.get("content"), str):
            raise ModelError(
                f"turn {number} of a conversation is the assistant's and has no text",
                why="it only calls tools, whose calls this version does not render",
                fix="leave such rows out, or turn their calls into text",
            )


def _special_texts(tokenizer: Any) -> tuple[str, ...]:
    """Texts of all control tokens, longest first: in one order in every process, as they name cached tokens."""
    added = {str(token) for token in tokenizer.get_added_vocab()}
    texts = added | {str(token) for token in tokenizer.all_special_tokens}
    return tuple(sorted((t for t in texts if t.strip()), key=lambda t: (-len(t), t)))


def _content_spans(text: str, messages: Sequence[Message]) -> Iterator[tuple[int, int, Role]]:
    """Where the contents of `messages` lie in `text`, in order.

    A content that the template changed is not found; its tokens then show as the template's.
    """
    position = 0
    for message in messages:
        content = str(message.get("content") or "").strip()
        found = text.find(content, position) if content else -1
        if found >= 0:
            position = found + len(content)
            yield found, position, str(message["role"])


def _role_of(spans: Sequence[tuple[int, int, Role]], start: int, end: int) -> Role:
    """The role of the first content that a token has a character in, else the template's."""
    return next((role for first, last, role in spans if first < end and start < last), TEMPLATE)
