"""The guide's table of forms is the code's."""

from __future__ import annotations

import math
import re
from pathlib import Path

from tunesmith.config import DEFAULT_FORMS, FORMS
from tunesmith.export.arithmetic import COMPUTED_IN
from tunesmith.export.forms import KINDS, PATHS, SERVED

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "docs/export/guide.md").read_text(encoding="utf-8")


def limits(form):
    """As the guide writes them."""
    kind = KINDS[form].limits
    texts = [
        f"{100 * kind.greedy_agreement:g} %",
        f"{kind.mean_kl:g}",
        f"{kind.perplexity_ratio:g}",
    ]
    if math.isfinite(kind.max_abs_dlogit):
        texts.append(f"{kind.max_abs_dlogit:g}")
    return " · ".join(texts)


def test_the_guide_names_every_form_with_its_place_and_its_limits():
    rows = {
        found[1]: [cell.strip() for cell in found[0].strip("|").split("|")]
        for found in re.finditer(r"^\| `([\w-]+)` \|.*\|$", GUIDE, re.M)
        if found[1] in FORMS
    }
    assert set(rows) == set(KINDS)
    for form, cells in rows.items():
        assert cells[1].strip("`/") == PATHS[form], form
        assert cells[3] == limits(form), form
        assert cells[5] == COMPUTED_IN[form], form


def test_the_guide_names_the_default_forms_and_the_order_for_ollama():
    head = GUIDE.partition("## Forms")[0]
    assert all(f"`{form}`" in head for form in DEFAULT_FORMS)
    order = re.search(r"first of ([\w, ]+) that was made", GUIDE)[1]
    names = [name.strip().lower() for name in order.split(",")]
    assert names == [form.removeprefix("gguf-") for form in SERVED]
