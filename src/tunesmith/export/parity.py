"""How close an exported form is to the model that was trained: the parity certificate.

Both are shown the same prompts, each followed by the reference's own greedy answer. At every token
of that answer their expectations for the next token are compared. The reference is base + adapter
in float32. Greedy agreement is the share of positions at which both have the same most likely
token. A row whose positions all agree would also be answered alike by greedy decoding, token for
token: each token follows from the ones before it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.config import Form
from tunesmith.errors import ParityError, listed

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from tunesmith.engine import NextTokenLogprobs

__all__ = ["CLEAR_MARGIN_NATS", "FormParity", "Tally", "is_as_likely", "refuse_below"]

CLEAR_MARGIN_NATS = 0.01
"""A position is clear when the reference's best token leads its second by more than this."""
_UPPER: Mapping[str, str] = {
    "mean_kl": "mean KL (nats)",
    "max_abs_dlogit": "largest difference of a logit",
}
"""Figures that must not be larger than their limit, and what they are called."""
_LOG_ERROR = 1e-12
"""Rounding in the comparison of a ratio with a limit that it equals."""
_REST_ERROR = 1e-6
"""Added to the probability that the form leaves beside the reported tokens, which is a difference of
rounded numbers: too large a rest can only make the divergence smaller, so it stays a lower bound."""


@dataclass(frozen=True)
class FormParity:
    """The figures of one form. Differences are in nats.

    Attributes:
        limits: how far the form may be, by the names of the figures.
        greedy_agreement: share of positions with the same most likely token.
        clear_agreement: the same over positions without a near-tie in the reference; None when all
            positions are near-ties.
        mean_kl: mean of KL(reference || form) over the positions.
        kl: over which tokens the KL was taken.
        max_abs_dlogit: largest difference of two logits; None when the engine gives no logits.
        max_abs_dlogprob: largest difference of two log probabilities, over the tokens that the
            engine reports; None when it gives logits.
        perplexity: of the user's answers to the prompts, by the form; None when rows have none.
        reference_perplexity: the same by the trained model.
        given_tokens: tokens of those answers.
        same_answers: share of prompts whose whole greedy answer is the same.
        stops_checked: answers that were generated freely, to see that they end at the stop token.
        engine: what computed the form's side.
        sha256: hash of each file that was measured.
        asked: hash of what it was asked; see `Reference.identity`.
        settings: what its settings were held against, key by key, or that it was no longer there.
        weights: how those of `merged` and `pruned` were held against the merged model's; empty for other forms.
        ended: answers of the trained model that ended within the tokens that were compared.
    """

    form: str
    greedy_agreement: float
    clear_agreement: float | None
    mean_kl: float
    max_kl: float
    kl: str
    max_abs_dlogit: float | None
    max_abs_dlogprob: float | None
    perplexity: float | None
    reference_perplexity: float | None
    given_tokens: int
    same_answers: float
    positions: int
    clear_positions: int
    prompts: int
    limits: Mapping[str, float]
    renderer_fingerprint: str
    stops_checked: int
    engine: str
    sha256: Mapping[str, str]
    asked: str
    seconds: float = 0.0
    settings: str = ""
    weights: str = ""
    ended: int | None = None

    @property
    def perplexity_ratio(self) -> float | None:
        """Perplexity over the trained model's; 1 is no change."""
        if self.perplexity is None or self.reference_perplexity is None:
            return None
        return self.perplexity / self.reference_perplexity

    def as_dict(self) -> dict[str, Any]:
        """As JSON values, without what does not apply."""
        values = asdict(self) | {"perplexity_ratio": self.perplexity_ratio}
        return {name: value for name, value in values.items() if value is not None}

    def beyond(self) -> list[str]:
        """What is beyond its limit, as texts with figure and limit."""
        return list(self.figures_beyond().values())

    def figures_beyond(self) -> dict[str, str]:
        """Name of each figure that is beyond its limit, and that text."""
        found: dict[str, str] = {}
        if not self.greedy_agreement >= self.limits["greedy_agreement"]:
            found["greedy_agreement"] = (
                f"greedy agreement {_apart(self.greedy_agreement, self.limits['greedy_agreement'])} "
                f"is below the limit {self.limits['greedy_agreement']:g} ({self.positions} positions, {_clear(self)})"
            )
        for name, what in _UPPER.items():
            value = getattr(self, name)
            limit = self.limits.get(name, math.inf)
            if value is not None and not value <= limit:
                found[name] = f"{what} {_apart(value, limit)} is above the limit {limit:g}"
        ratio, limit = self.perplexity_ratio, self.limits.get("perplexity_ratio", math.inf)
        nats = self._nats
        if ratio is not None and not is_as_likely(ratio, limit, nats):
            allowed = f"limit {limit:g}" + (
                f" for each of {nats:.3g} nats a token" if nats > 1 else ""
            )
            found["perplexity_ratio"] = (
                f"perplexity over the trained model's {_apart(ratio, limit)} is more than the factor that the "
                f"{allowed} allows, up or down"
            )
        return found

    @property
    def _nats(self) -> float:
        """How often the perplexity's factor counts; see `Limits.most_nats`."""
        nats = math.log(self.reference_perplexity or 1.0)
        return min(max(1.0, nats), self.limits.get("most_nats", 1.0))


def is_as_likely(ratio: float, limit: float, nats: float = 1.0) -> bool:
    """Whether a form finds the user's answers as likely as the trained model does, within a factor.

    The factor counts either way: a form that finds them likelier is another model, too.

    Args:
        ratio: perplexity of the form over the trained model's.
        limit: the factor, at least 1.
        nats: how often it counts.
    """
    if not ratio > 0:
        return False
    return abs(math.log(ratio)) <= math.log(limit) * nats * (1 + _LOG_ERROR) + _LOG_ERROR


@dataclass
class Tally:
    """Collects positions of rows and reduces them to figures."""

    agrees: list[bool] = field(default_factory=list)
    clear: list[bool] = field(default_factory=list)
    divergences: list[float] = field(default_factory=list)
    same_rows: list[bool] = field(default_factory=list)
    largest_dlogit: float = 0.0
    largest_dlogprob: float = 0.0
    given: list[float] = field(default_factory=list)

    def add_logits(self, reference: NDArray[np.float32], form: NDArray[np.float32]) -> None:
        """A row by full logits, both (tokens, vocabulary).

        Raises:
            ParityError: the form has numbers that are not finite, or another vocabulary.
        """
        import numpy as np

        if reference.shape != form.shape:
            raise ParityError(
                f"the exported model has {form.shape[1]} tokens, the trained one "
                f"{reference.shape[1]}"
            )
        if not np.isfinite(form).all():
            raise ParityError("the exported model computes numbers that are not finite")
        p, q = _log_softmax(reference), _log_softmax(form)
        kl = (np.exp(p) * (p - q)).sum(axis=1)
        self._add(reference, form.argmax(axis=1), kl)
        difference = float(np.abs(reference.astype(np.float64) - form).max())
        self.largest_dlogit = max(self.largest_dlogit, difference)

    def add_top(self, reference: NDArray[np.float32], form: NextTokenLogprobs) -> None:
        """A row by the form's most likely tokens; all others count as one.

        By the data processing inequality the KL between the two coarser distributions is at most
        the full KL.

        Raises:
            ParityError: the form has numbers that are not finite, or tokens that are not known.
        """
        import numpy as np

        if form.token_ids.max(initial=0) >= reference.shape[1]:
            raise ParityError("the exported model has tokens that the trained one does not have")
        if not np.isfinite(form.logprobs).all():
            raise ParityError("the exported model computes numbers that are not finite")
        p = np.take_along_axis(_log_softmax(reference), form.token_ids, axis=1)
        q = form.logprobs.astype(np.float64)
        rest_p = np.maximum(1 - np.exp(p).sum(axis=1), 0.0)
        rest_q = np.maximum(1 - np.exp(q).sum(axis=1), 0.0) + _REST_ERROR
        rest = rest_p * np.log(np.maximum(rest_p, np.finfo(np.float64).tiny) / rest_q)
        kl = (np.exp(p) * (p - q)).sum(axis=1) + rest
        self._add(reference, form.token_ids[:, 0], kl)
        self.largest_dlogprob = max(self.largest_dlogprob, float(np.abs(p - q).max()))

    def add_given(self, logprobs: Iterable[float]) -> None:
        """Log probabilities of the tokens of one of the user's answers, by the form.

        Raises:
            ParityError: the form has numbers that are not finite.
        """
        found = [float(value) for value in logprobs]
        if not all(math.isfinite(value) for value in found):
            raise ParityError("the exported model computes numbers that are not finite")
        self.given += found

    @property
    def perplexity(self) -> float | None:
        """Of all answers that were given; None when there was none."""
        # Beyond e^700 a float ends; such a model is as broken as any.
        return math.exp(min(700.0, -_mean(self.given))) if self.given else None

    def _add(
        self, reference: NDArray[np.float32], best: NDArray[np.int64], kl: NDArray[np.float64]
    ) -> None:
        import numpy as np

        agrees = reference.argmax(axis=1) == best
        top_two = np.partition(reference, -2, axis=1)[:, -2:]
        self.agrees += agrees.tolist()
        self.clear += ((top_two[:, 1] - top_two[:, 0]) > CLEAR_MARGIN_NATS).tolist()
        # Rounding can make the divergence of equal distributions slightly negative.
        self.divergences += np.maximum(kl, 0.0).tolist()
        self.same_rows.append(bool(agrees.all()))

    def figures(self) -> dict[str, Any]:
        """The part of `FormParity` that follows from the positions."""
        clear = [
            agrees for agrees, is_clear in zip(self.agrees, self.clear, strict=True) if is_clear
        ]
        return {
            "greedy_agreement": _mean(self.agrees),
            "clear_agreement": _mean(clear) if clear else None,
            "mean_kl": _mean(self.divergences),
            "max_kl": max(self.divergences),
            "same_answers": _mean(self.same_rows),
            "positions": len(self.agrees),
            "clear_positions": len(clear),
            "prompts": len(self.same_rows),
        }


def _mean(values: list[Any]) -> float:
    return float(sum(values) / len(values))


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    import numpy as np

    exact = logits.astype(np.float64)
    exact -= exact.max(axis=1, keepdims=True)
    result: NDArray[np.float64] = exact - np.log(np.exp(exact).sum(axis=1, keepdims=True))
    return result


def refuse_below(
    measured: Mapping[Form, FormParity],
    problems: Mapping[Form, str],
    kept: Path = Path("scratch/parity.json"),
) -> None:
    """Fail when a form is beyond a limit, or failed a check that has no figure.

    Args:
        measured: form -> its figures.
        problems: form -> what else is wrong with it.
        kept: the file in which the figures are.

    Raises:
        ParityError: names every such form with figure and limit.
    """
    found = {form: figures.figures_beyond() for form, figures in measured.items()}
    lines = [f"{form}: {text}" for form, texts in found.items() for text in texts.values()]
    lines += [f"{form}: {problem}" for form, problem in problems.items()]
    if not lines:
        return
    failed = [*(form for form, texts in found.items() if texts), *problems]
    raise ParityError(
        f"{len(set(failed))} of {len(set(measured) | set(problems))} exported forms "
        f"differ from the trained model:\n{listed(lines)}",
        why="the bundle would answer otherwise than the model that was judged; nothing was sealed",
        fix="run the export again; if it stays so, leave the form out of export.forms"
        + _accepted(found, kept),
    )


def _accepted(found: Mapping[Form, Mapping[str, str]], kept: Path) -> str:
    """How a difference is accepted, where there is a figure; one form stands for the others."""
    beyond = {form: list(texts) for form, texts in found.items() if texts}
    if not beyond:
        return ""
    form, figures = next(iter(beyond.items()))
    several = sum(map(len, beyond.values())) > 1
    return (
        f", or accept what was measured ({kept}) by its limit: "
        f"--set export.limits.{form}.{figures[0]}=VALUE" + (", and so on" if several else "")
    )


def _apart(value: float, limit: float) -> str:
    """The figure with as many digits as tell it from the limit."""
    digits = (4, 6, 9, 12, 17)
    return next(
        (text for n in digits if float(text := f"{value:.{n}g}") != limit),
        f"{value:.17g}",
    )


def _clear(parity: FormParity) -> str:
    if parity.clear_agreement is None:
        return "all of them near-ties"
    return f"{parity.clear_agreement:.4f} without near-ties"
