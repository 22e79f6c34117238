"""A review by keys: each decision lands, rows in are kept, changed or dropped, and any stop goes on where it was."""

from __future__ import annotations

import json

from click.testing import CliRunner
from hypothesis import example, given
from hypothesis import strategies as st
from rows_of_text import rows_in

from tunesmith.cli.data.review import review

KEYS = {"a": "accept", "r": "reject", "e": "edit", "s": "skip"}
EDITOR = "sed -i s/plain/fine/"


def row(n, loss):
    answer = f"A plain answer to number {n}."
    turns = [{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": answer}]
    return {"messages": turns, "meta": {"loss": loss, "n": n}}


def decisions_after(order, sessions):
    """What the keys decide, told apart from the code: (row, choice) in their order."""
    made = []
    for keys in sessions:
        for key in keys:
            left = [n for n in order if n not in [done for done, _ in made]]
            if key == "q":
                break
            if key == "u":
                made = made[:-1]
            elif key in KEYS and left:
                made.append((left[0], KEYS[key]))
    return made


@given(
    losses=st.lists(st.integers(0, 2), min_size=1, max_size=4),
    sessions=st.lists(st.text("areesuqx", max_size=5), min_size=1, max_size=2),
    only_accepted=st.booleans(),
)
@example(losses=[0, 2, 1], sessions=["arxu", "eusq", "aq"], only_accepted=True)
def test_every_key_lands_and_every_row_is_kept_changed_or_dropped(
    tmp_path_factory, losses, sessions, only_accepted
):
    folder = tmp_path_factory.mktemp("review")
    rows = [row(n, loss) for n, loss in enumerate(losses)]
    file = folder / "rows.jsonl"
    texts = [json.dumps(one) for one in rows]
    file.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    order = sorted(range(len(rows)), key=lambda n: (-losses[n], n))
    words = [str(file), "--by", "loss", "--json", *["--only-accepted"] * only_accepted]
    for n_sessions, keys in enumerate(sessions, 1):
        done = CliRunner().invoke(review, words, input=keys, env={"EDITOR": EDITOR, "VISUAL": ""})
        assert done.exit_code == 0, done.output
        told = json.loads(done.stdout)
        decided = dict(decisions_after(order, sessions[:n_sessions]))
        counts = {name: list(decided.values()).count(name) for name in KEYS.values()}
        assert {name: told[name] for name in counts} == counts
        assert told["left"] == len(rows) - len(decided)
        kept, side = [], []
        for n, text in enumerate(texts):
            choice = decided.get(n)
            new = text.replace("plain", "fine")
            if choice == "edit":
                kept.append(json.loads(new))
                side.append(("edited", rows[n], json.loads(new)))
            elif choice == "reject":
                side.append(("rejected", rows[n], None))
            elif only_accepted and choice != "accept":
                side.append(("skipped" if choice else "not looked at", rows[n], None))
            else:
                kept.append(rows[n])
        assert rows_in(folder / "rows.reviewed.jsonl") == kept
        found = rows_in(folder / "rows.reviewed-side.jsonl")
        assert [(one["reason"], one["row"], one.get("to")) for one in found] == side
        # In = kept + dropped; a changed row is both kept and, as it was, in the side file.
        assert len(kept) + sum(new is None for _, _, new in side) == len(rows)
