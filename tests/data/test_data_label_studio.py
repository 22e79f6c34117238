"""Label Studio's own package: it takes what is exported, and what it writes is taken.

The files in tests/assets/label_studio are made by its code (label-studio-sdk 2.1.2, Label Studio 1.23.2), with

    python benchmarks/data/label_studio_check.py --environment .peers/labelstudio --keep tests/assets/label_studio \\
        --server http://127.0.0.1:8080 --token KEY
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tunesmith.data.annotate import export, form_in, import_results, read_results
from tunesmith.data.grow.source import read_rows
from tunesmith.errors import DataError

ROOT = Path(__file__).parents[2]
ASSETS = ROOT / "tests" / "assets" / "label_studio"
SCRIPT = ROOT / "benchmarks" / "data" / "label_studio_check.py"
ENVIRONMENT = "LABEL_STUDIO_ENVIRONMENT"
FORMS = ("chat", "classification", "pairs")


@pytest.fixture
def check(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import label_studio_check

    return label_studio_check


def imported(form, name):
    rows = read_rows([ASSETS / f"{form}.jsonl"])
    path = ASSETS / f"{form}-{name}.json"
    return import_results(rows, read_results(path, rows, form_in(path)), form)


@pytest.mark.parametrize("form", FORMS)
def test_tasks_and_interfaces_are_those_that_its_validators_took(form):
    assert json.loads((ASSETS / "judged.json").read_text())["problems"] == []
    rows = read_rows([ASSETS / f"{form}.jsonl"])
    made = export(rows, form, predictions=True)
    for task, row in zip(made.tasks, rows, strict=True):
        assert task["data"]["row"] == row.where
        task["data"]["row"] = f"{form}.jsonl:{row.where.rpartition(':')[2]}"
    assert made.tasks == json.loads((ASSETS / f"{form}.json").read_text(encoding="utf-8"))
    assert made.config == (ASSETS / f"{form}.xml").read_text(encoding="utf-8")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["export", "server"])
def test_what_its_objects_its_converter_and_its_server_write_is_imported(form, name, check):
    made = imported(form, name)
    rows = [json.loads(row.text) for row in made.rows]
    dropped = [json.loads(line)["row"] for line in made.dropped]
    assert check.judge(form, name, ASSETS, rows, dropped) == []
    if name == "export":
        assert len(made.conflicts) == check.N_ROWS
        assert made.agreement.n_annotators == len(check.ANNOTATORS)


@pytest.mark.parametrize("form", FORMS)
def test_json_min_is_refused_by_name(form):
    with pytest.raises(DataError) as caught:
        imported(form, "min")
    assert "export from Label Studio as JSON" in caught.value.fix


def test_the_judge_of_the_rows_that_come_back_can_say_no(check):
    made = [json.loads(row.text) for row in imported("classification", "export").rows]
    made[1]["messages"][2]["content"] = "another"
    assert len(check.judge("classification", "export", ASSETS, made, [])) == 1
    assert len(check.judge("classification", "export", ASSETS, made[:-1], [])) == 3


@pytest.mark.slow
def test_label_studio_itself_takes_the_tasks_and_its_results_come_back(tmp_path):
    place = os.environ.get(ENVIRONMENT)
    if not place:
        pytest.skip(f"{ENVIRONMENT} names no environment with label-studio-sdk")
    command = [sys.executable, str(SCRIPT), "--environment", place, "--keep", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    for file in tmp_path.glob("*.json"):
        if not file.match("*server.json"):
            theirs = json.loads((ASSETS / file.name).read_text(encoding="utf-8"))
            assert json.loads(file.read_text(encoding="utf-8")) == theirs
