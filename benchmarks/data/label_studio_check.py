"""Label Studio's own package beside what is exported for it, and our import beside what it writes.

    sh benchmarks/data/peers/install.sh labelstudio .peers
    python benchmarks/data/label_studio_check.py --environment .peers/labelstudio
    python benchmarks/data/label_studio_check.py --environment .peers/labelstudio --keep tests/assets/label_studio
    ... --server http://127.0.0.1:8080 --token KEY        through a running Label Studio as well

For each form rows are exported by `tunesmith data annotate export --predictions`. In the other environment the package
label-studio-sdk parses the interface, judges every task and prediction (and two that are wrong on purpose, which it must
refuse), makes annotations with its own objects, judges those, and writes them through its converter as JSON and as
JSON-MIN. The first must come back by `tunesmith data annotate import` with the votes, answers and ratings that were
given; the second must be refused. --keep keeps all files: the fast tests read them.

With --server projects are made there, the tasks imported, all but the last one annotated by the token's user, and the
server's own JSON export of all tasks must come back. It was run with Label Studio 1.23.2 (`label-studio start`).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

FORMS = ("chat", "classification", "pairs")
CHOICES = {"chat": ("accept", "reject"), "pairs": ("left", "right", "equal")}
CONTROL = {"chat": "verdict", "classification": "label", "pairs": "better"}
LABELS = ('a & "b"', "c, d", "<ж>")
BETTER = 'better: "quoted" <b>&amp;</b>\nsecond line \u2028 \U0001f600'
N_ROWS = 6
ANNOTATORS = (1, 2, 3)


def rows_of(form: str) -> list[dict[str, Any]]:
    """Rows with texts that markup, JSON and terminals get wrong."""
    hard = [
        "plain",
        "<b>&amp; \"q\" 'a'</b>",
        "two\nlines\ttab",
        "\u202eright",
        "$text",
        "\U0001f600",
    ]
    asked = [{"role": "user", "content": f"{n}: {text}"} for n, text in enumerate(hard)]
    said = [{"role": "assistant", "content": f"{text} {n}"} for n, text in enumerate(hard)]
    if form == "pairs":
        worse = [{"role": "assistant", "content": f"worse {text}"} for text in hard]
        parts = zip(asked, said, worse, strict=True)
        return [{"prompt": [q], "chosen": [a], "rejected": [r]} for q, a, r in parts]
    if form == "classification":
        said = [{"role": "assistant", "content": LABELS[n % 3]} for n in range(N_ROWS)]
    else:
        asked[2] = {"role": "user", "content": "the weather?"}
        call = {"name": "weather", "arguments": '{"city": "Graz"}'}
        said[2] = {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c1", "type": "function", "function": call}],
        }
    system = {"role": "system", "content": "be <brief> & kind"}
    return [{"messages": [system, q, a]} for q, a in zip(asked, said, strict=True)]


def choices_of(form: str) -> tuple[str, ...]:
    return CHOICES.get(form, tuple(sorted(LABELS)))


def planned(form: str, n: int, who: int) -> dict[str, Any]:
    """What an annotator says of task `n`: the third one differs, and of the last task is right."""
    choices = choices_of(form)
    said: dict[str, Any] = {"choice": choices[(n + (who == 3)) % len(choices)]}
    if form == "chat" and who == 1:
        said["rating"] = n % 5 + 1
        if n == 1:
            said["better"] = BETTER
    said["ground_truth"] = who == 3 and n == N_ROWS - 1
    return said


# -- in the environment of label-studio-sdk ---------------------------------------------------------


def peer(folder: Path) -> None:
    """Writes for each form FORM-export.json and FORM-min.json, and judged.json with all complaints."""
    from importlib.metadata import version

    from label_studio_sdk.converter import Converter
    from label_studio_sdk.label_interface import LabelInterface

    problems: list[str] = []
    n_judged = 0
    for form in FORMS:
        config = folder / f"{form}.xml"
        interface = LabelInterface(config.read_text(encoding="utf-8"))
        interface.validate()
        tasks = json.loads((folder / f"{form}.json").read_text(encoding="utf-8"))
        problems += refused(interface, form, tasks)
        exported = [annotated(interface, form, n, task) for n, task in enumerate(tasks)]
        for task in exported:
            for made in task["annotations"]:
                if not interface.validate_annotation(made):
                    problems.append(f"{form}: its own annotation {made}")
            n_judged += 1 + len(task["annotations"]) + len(task["predictions"])
        problems += [
            f"{form}: {name} is taken" for name in wrongly_taken(interface, form, tasks[0])
        ]
        given = folder / f"{form}-annotated.json"
        given.write_text(json.dumps(exported), encoding="utf-8")
        converter = Converter(str(config), str(folder))
        for name, write in (
            ("export", converter.convert_to_json),
            ("min", converter.convert_to_json_min),
        ):
            write(str(given), str(folder / "out"), is_dir=False)
            # The same on every machine: what was copied is written again with one indent.
            value = json.loads((folder / "out" / "result.json").read_text(encoding="utf-8"))
            text = json.dumps(value, ensure_ascii=False, indent=1)
            (folder / f"{form}-{name}.json").write_text(f"{text}\n", encoding="utf-8")
        given.unlink()
    found = {
        "label_studio_sdk": version("label-studio-sdk"),
        "judged": n_judged,
        "problems": problems,
    }
    (folder / "judged.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def refused(interface: Any, form: str, tasks: list[dict[str, Any]]) -> list[str]:
    """What its validators say against tasks and predictions."""
    from label_studio_sdk.label_interface.objects import TaskValue

    problems = []
    for n, task in enumerate(tasks):
        TaskValue.model_validate(task)
        # With predictions in the task its validate_task calls validate_prediction without one.
        if not interface.validate_task({"data": task["data"]}):
            problems.append(f"{form}: task {n} is refused")
        for prediction in task.get("predictions", ()):
            said = interface.validate_prediction(prediction, return_errors=True)
            problems += [f"{form}: prediction of task {n}: {one}" for one in said]
    return problems


def wrongly_taken(interface: Any, form: str, task: dict[str, Any]) -> list[str]:
    """Names of wrong things that it takes: if any, its judgement says nothing."""
    control = interface.get_control(CONTROL[form])
    region = control.label(label=choices_of(form)[0])._dict()
    choice = {"result": [{**region, "value": {"choices": ["no such choice"]}}]}
    place = {"result": [{**region, "to_name": "nowhere"}]}
    fields = dict(list(task["data"].items())[:2])
    taken = {
        "an unknown choice": interface.validate_annotation(choice),
        "an unknown field": interface.validate_prediction(place),
        "a task without its texts": interface.validate_task({"data": fields}),
    }
    return [name for name, value in taken.items() if value]


def annotated(interface: Any, form: str, n: int, task: dict[str, Any]) -> dict[str, Any]:
    """A task as it is exported, with annotations made of the package's own objects."""
    from label_studio_sdk.label_interface.objects import AnnotationValue, PredictionValue, TaskValue

    made, dates = [], []
    for who in ANNOTATORS:
        said = planned(form, n, who)
        regions = [interface.get_control(CONTROL[form]).label(label=said["choice"])]
        if "rating" in said:
            regions.append(interface.get_control("quality").label(rating=said["rating"]))
        if "better" in said:
            regions.append(interface.get_control("better").label(text=[said["better"]]))
        for at, region in enumerate(regions):
            region.id = f"t{n}a{who}r{at}"
        truth = said["ground_truth"]
        value = AnnotationValue(completed_by=who, ground_truth=truth, result=regions, lead_time=1.5)
        made.append(value)
        dates.append(f"2026-01-01T00:00:{who:02d}.000000Z")
    left_open = AnnotationValue(completed_by=4, was_cancelled=True, result=[])
    whole = TaskValue(
        data=task["data"],
        annotations=[*made, left_open],
        predictions=[PredictionValue(**one) for one in task.get("predictions", ())],
    ).model_dump()
    for number, (annotation, date) in enumerate(
        zip(whole["annotations"], [*dates, dates[-1]], strict=True)
    ):
        # What the server adds when it stores them.
        annotation |= {"id": 10 * n + number, "created_at": date, "updated_at": date}
    return {"id": n + 1, **whole, "project": 1}


# -- here -------------------------------------------------------------------------------------------


def tunesmith(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tunesmith", "data", "annotate", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def export(folder: Path) -> None:
    """FORM.jsonl, FORM.json and FORM.xml for each form."""
    for form in FORMS:
        rows = folder / f"{form}.jsonl"
        lines = [json.dumps(row, ensure_ascii=False) for row in rows_of(form)]
        rows.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        tasks, config = folder / f"{form}.json", folder / f"{form}.xml"
        done = tunesmith(
            "export", rows, "--as", form, "--predictions", "--out", tasks, "--config", config
        )
        if done.returncode:
            raise SystemExit(done.stderr)
        # Not the folder of this machine; the import does not read it.
        made = json.loads(tasks.read_text(encoding="utf-8"))
        for n, task in enumerate(made, 1):
            task["data"]["row"] = f"{rows.name}:{n}"
        text = json.dumps(made, ensure_ascii=False, indent=1)
        tasks.write_text(f"{text}\n", encoding="utf-8")


def judge(
    form: str, name: str, folder: Path, made: list[dict[str, Any]], dropped: list[Any]
) -> list[str]:
    """What is wrong with the rows that came back.

    Args:
        name: which results: "export" of the package or "server".
        made: the rows after the import.
        dropped: those of the side file that are gone.
    """
    annotators = ANNOTATORS if name == "export" else ANNOTATORS[:1]
    tasks = json.loads((folder / f"{form}.json").read_text(encoding="utf-8"))
    problems: list[str] = []
    by_question = {question(row): row for row in made}
    gone = {question(row) for row in dropped}
    for n, row in enumerate(rows_of(form)):
        key = question(row)
        found = by_question.get(key)
        expected, vote = row, voted(form, name, n)
        if vote is not None:
            expected = after(form, n, row, vote, tasks[n]["data"])
        if expected is None:
            if key not in gone or found is not None:
                problems.append(f"{form}: row {n} should be dropped")
            continue
        if found is None or {**found, "meta": None} != {**expected, "meta": None}:
            problems.append(f"{form}: row {n} is {found}, not {expected}")
            continue
        notes = found["meta"].get("annotation", {})
        if set(notes.get("votes", ())) != {str(who) for who in annotators if vote}:
            problems.append(f"{form}: row {n} has the notes {notes}")
        if form == "chat" and vote and notes.get("ratings") != {"1": n % 5 + 1}:
            problems.append(f"{form}: row {n} has the notes {notes}")
    if len(made) + len(dropped) != N_ROWS:
        problems.append(f"{form}: {len(made)} rows and {len(dropped)} dropped ones of {N_ROWS}")
    return problems


def voted(form: str, name: str, n: int) -> str | None:
    """What annotators decide of row `n`; None where nobody annotated it."""
    truth = planned(form, n, 3)
    if name == "export" and truth["ground_truth"]:
        return str(truth["choice"])
    if name == "server" and n == N_ROWS - 1:
        return None
    return str(planned(form, n, 1)["choice"])


def question(row: dict[str, Any]) -> str:
    return str((row.get("prompt") or row["messages"][1:])[0]["content"])


def after(
    form: str, n: int, row: dict[str, Any], vote: str, data: dict[str, Any]
) -> dict[str, Any] | None:
    """The row as it should be, or None where it should be dropped."""
    if form == "pairs":
        if vote == "equal":
            return None
        is_chosen = data[vote] == row["chosen"][0]["content"]
        turned = {**row, "chosen": row["rejected"], "rejected": row["chosen"]}
        return row if is_chosen else turned
    answer = vote if form == "classification" else row["messages"][2]["content"]
    if form == "chat" and vote == "reject":
        if n != 1:
            return None
        answer = BETTER
    return {"messages": [*row["messages"][:2], {**row["messages"][2], "content": answer}]}


def come_back(folder: Path) -> list[str]:
    """What is wrong with the import of all forms."""
    problems = []
    for form in FORMS:
        for name in ("export", "server", "min"):
            results = folder / f"{form}-{name}.json"
            if not results.is_file():
                continue
            with tempfile.TemporaryDirectory() as place:
                out, side = Path(place) / "out.jsonl", Path(place) / "side.jsonl"
                words = [folder / f"{form}.jsonl", "--out", out, "--side", side]
                done = tunesmith("import", *words, "--results", results)
                if name == "min":
                    if done.returncode == 0 or "JSON" not in done.stderr:
                        problems.append(f"{form}: JSON-MIN is not refused by name: {done.stderr}")
                elif done.returncode:
                    problems.append(f"{form} ({name}): {done.stderr}")
                else:
                    made = [json.loads(line) for line in lines_of(out)]
                    sides = [json.loads(line) for line in lines_of(side)]
                    dropped = [line["row"] for line in sides if "to" not in line]
                    problems += judge(form, name, folder, made, dropped)
    return problems


def lines_of(path: Path) -> list[str]:
    return [line for line in path.read_text(encoding="utf-8").split("\n") if line]


def through_server(folder: Path, url: str, token: str) -> None:
    """FORM-server.json: what a running Label Studio exports after its only user annotated."""

    def ask(method: str, path: str, body: object = None) -> Any:
        request = urllib.request.Request(
            f"{url.rstrip('/')}/api/{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Token {token}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read() or "null")

    for form in FORMS:
        config = (folder / f"{form}.xml").read_text(encoding="utf-8")
        project = ask("POST", "projects/", {"title": form, "label_config": config})["id"]
        tasks = json.loads((folder / f"{form}.json").read_text(encoding="utf-8"))
        ask("POST", f"projects/{project}/import", tasks)
        stored = ask("GET", f"tasks/?project={project}&page_size=100")["tasks"]
        number = {task["data"]["row_id"]: task["id"] for task in stored}
        made = json.loads((folder / f"{form}-export.json").read_text(encoding="utf-8"))
        for task in made[:-1]:
            mine = task["annotations"][0]
            kept = {name: mine[name] for name in ("result", "was_cancelled", "lead_time")}
            ask("POST", f"tasks/{number[task['data']['row_id']]}/annotations/", kept)
        skipped = number[made[-1]["data"]["row_id"]]
        ask("POST", f"tasks/{skipped}/annotations/", {"result": [], "was_cancelled": True})
        query = "exportType=JSON&download_all_tasks=true"
        found = ask("GET", f"projects/{project}/export?{query}")
        text = json.dumps(found, ensure_ascii=False, indent=1)
        (folder / f"{form}-server.json").write_text(f"{text}\n", encoding="utf-8")
        ask("DELETE", f"projects/{project}/")


def run(folder: Path, environment: Path, server: tuple[str, str] | None = None) -> list[str]:
    """Everything in one folder; the complaints of both sides."""
    python = environment / "bin" / "python"
    if not python.is_file():
        raise SystemExit(f"no environment at {environment}: see --help for how it is made")
    export(folder)
    command = [str(python.absolute()), str(Path(__file__).resolve()), "peer", str(folder)]
    subprocess.run(command, check=True)
    if server:
        through_server(folder, *server)
    judged = json.loads((folder / "judged.json").read_text(encoding="utf-8"))
    print(f"label-studio-sdk {judged['label_studio_sdk']}: {judged['judged']} objects judged")
    return [*judged["problems"], *come_back(folder)]


def main() -> None:
    if sys.argv[1:2] == ["peer"]:
        peer(Path(sys.argv[2]))
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--environment", type=Path, required=True, help="with label-studio-sdk")
    parser.add_argument("--server", help="address of a running Label Studio")
    parser.add_argument("--token", default="", help="of its user (a legacy token)")
    parser.add_argument("--keep", type=Path, help="a folder for all files")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = (asked.keep or Path(made)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        problems = run(
            folder, asked.environment, (asked.server, asked.token) if asked.server else None
        )
        for left in (folder / "out").glob("*"):
            left.unlink()
        (folder / "out").rmdir()
    print("\n".join(problems) or "every task and result is taken on both sides")
    raise SystemExit(1 if problems else 0)


if __name__ == "__main__":
    main()
