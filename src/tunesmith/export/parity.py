"""How close an exported form is to the model that was trained: the parity certificate.

Both are shown the same prompts, each followed by the reference's own greedy answer. At every token
of that answer their expectations for the next token are compared. The reference is base + adapter
in float32. Greedy agreement is the share of positions at which both have the same most likely
token. A row whose positions all agree would also be answered alike by greedy decoding, token for
token: each token follows from the ones before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from tunesmith.config import Form
from tunesmith.errors import ParityError, listed

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from tunesmith.engine import NextTokenLogprobs

__all__ = ["CLEAR_MARGIN_NATS", "FormParity", "Tally", "refuse_below"]

CLEAR_MARGIN_NATS = 0.01
"""A position is clear when the reference's best token leads its second by more than this."""
_REST_ERROR = 1e-6
"""Added to the probability that the form leaves beside the reported tokens, which is a difference of
rounded numbers: too large a rest can only make the divergence smaller, so it stays a lower bound."""


@dataclass(frozen=True)
class FormParity:
    """The figures of one form. Differences are in nats.

    Attributes:
        greedy_agreement: share of positions with the same most likely token; the limit is on this.
        clear_agreement: the same over positions without a near-tie in the reference; None when all
            positions are near-ties.
        mean_kl: mean of KL(reference || form) over the positions.
        kl: over which tokens the KL was taken.
        max_abs_dlogit: largest difference of two logits; None when the engine gives no logits.
        same_answers: share of prompts whose whole greedy answer is the same.
        stops_checked: answers that were generated freely, to see that they end at the stop token.
        engine: what computed the form's side.
        sha256: hash of each file that was measured.
    """

    form: str
    greedy_agreement: float
    clear_agreement: float | None
    mean_kl: float
    max_kl: float
    kl: str
    max_abs_dlogit: float | None
    same_answers: float
    positions: int
    clear_positions: int
    prompts: int
    limit: float
    renderer_fingerprint: str
    stops_checked: int
    engine: str
    sha256: Mapping[str, str]
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """As JSON values, without what does not apply."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass
class Tally:
    """Collects positions of rows and reduces them to figures."""

    agrees: list[bool] = field(default_factory=list)
    clear: list[bool] = field(default_factory=list)
    divergences: list[float] = field(default_factory=list)
    same_rows: list[bool] = field(default_factory=list)
    largest_dlogit: float = 0.0

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


def refuse_below(measured: Mapping[Form, FormParity], problems: Mapping[Form, str]) -> None:
    """Fail when a form is below its limit, or failed a check that has no figure.

    Args:
        measured: form -> its figures.
        problems: form -> what else is wrong with it.

    Raises:
        ParityError: names every such form with figure and limit.
    """
    lines = [*_below(measured), *(f"{form}: {problem}" for form, problem in problems.items())]
    if not lines:
        return
    quantised = all("q8_0" in line.partition(":")[0] for line in lines)
    option = "min_greedy_agreement_quantised" if quantised else "min_greedy_agreement"
    raise ParityError(
        f"{len(lines)} of {len(measured) + len(set(problems) - set(measured))} exported forms "
        f"differ from the trained model:\n{listed(lines)}",
        why="the bundle would answer otherwise than the model that was judged; nothing was sealed",
        fix="run the export again; if it stays so, leave the form out of export.forms, or accept "
        f"the difference: --set export.{option}=VALUE (the figures are in scratch/parity.json)",
    )


def _below(measured: Mapping[Form, FormParity]) -> Iterator[str]:
    for form, parity in measured.items():
        if parity.greedy_agreement < parity.limit:
            yield (
                f"{form}: greedy agreement {parity.greedy_agreement:.4f} is below the limit "
                f"{parity.limit:g} ({parity.positions} positions, {_clear(parity)}, mean KL "
                f"{parity.mean_kl:.3g} nats)"
            )


def _clear(parity: FormParity) -> str:
    if parity.clear_agreement is None:
        return "all of them near-ties"
    return f"{parity.clear_agreement:.4f} without near-ties"
