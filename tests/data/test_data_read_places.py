"""Folders, patterns and datasets of the hub become the files that hold their rows."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar
from urllib.parse import unquote

import pytest

from tunesmith.config import recipe_from
from tunesmith.data.plan import plan_data
from tunesmith.data.problems import Problems
from tunesmith.data.read import expand, open_source, survey
from tunesmith.data.read.hub import parsed
from tunesmith.data.read.layout import fits, split_of
from tunesmith.errors import ConfigError, DataError, EnvironmentProblem, MissingError

ROW = '{"a": 1}\n'
CARD = """---
license: mit
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*
  - split: test
    path: [data/held.jsonl]
---
# A dataset
"""


def fill(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")


def names(paths, folder):
    return [path.relative_to(folder).as_posix() for path in paths]


def test_a_folder_is_all_its_readable_files_in_order_and_names_the_others(tmp_path):
    fill(
        tmp_path,
        {"b.jsonl": ROW, "a/z.csv": "a,b\n1,2\n", "a/c.md": "# A\n", ".hidden.jsonl": ROW}
        | {".git/x.jsonl": ROW, "script.py": "import os\n", "rows": ROW, "text.txt": "x\n"},
    )
    sqlite3.connect(tmp_path / "base.sqlite").execute("create table t (a)").connection.close()
    found = survey(tmp_path)
    assert names(found.files, tmp_path) == ["a/c.md", "a/z.csv", "b.jsonl", "rows", "text.txt"]
    assert names(found.skipped, tmp_path) == ["base.sqlite", "script.py"]
    assert "an SQLite database" in found.skipped[tmp_path / "base.sqlite"]
    assert expand([tmp_path / "b.jsonl", str(tmp_path / "a")]) == [
        tmp_path / "b.jsonl",
        tmp_path / "a/c.md",
        tmp_path / "a/z.csv",
    ]


def test_a_readme_is_about_the_rows_beside_it_and_a_page_among_pages(tmp_path):
    fill(
        tmp_path, {"rows/README.md": "# A\n\nx\n", "rows/a.csv": "a\n1\n", "rows/LICENSE.txt": "x"}
    )
    fill(tmp_path, {"pages/README.md": "# A\n\nx\n", "pages/b.md": "# B\n\ny\n"})
    found = survey(tmp_path / "rows")
    assert names(found.files, tmp_path) == ["rows/a.csv"]
    assert set(found.skipped.values()) == {"it tells of the data"}
    assert names(expand(tmp_path / "pages"), tmp_path) == ["pages/README.md", "pages/b.md"]


def test_of_a_folder_with_files_named_by_split_only_those_are_taken(tmp_path):
    fill(tmp_path, {"train.jsonl": ROW, "dev.jsonl": ROW, "my-test-1.jsonl": ROW})
    for split, name in (("train", "train"), ("validation", "dev"), ("test", "my-test-1")):
        assert names(expand(tmp_path, split=split), tmp_path) == [f"{name}.jsonl"]
    assert len(expand(tmp_path)) == 3
    (tmp_path / "dev.jsonl").unlink()
    with pytest.raises(MissingError, match="named after the split 'validation'"):
        expand(tmp_path, split="validation")


def test_of_a_sealed_dataset_the_rows_are_taken_and_not_its_report(tmp_path):
    others = ("dropped.jsonl", "report.json", "manifest.json", "card.md")
    fill(tmp_path, dict.fromkeys(("test.jsonl", "train.jsonl", *others), ROW))
    assert names(expand(tmp_path), tmp_path) == ["train.jsonl", "test.jsonl"]
    assert names(expand(tmp_path, split="test"), tmp_path) == ["test.jsonl"]


def test_a_package_that_is_not_installed_is_named_with_the_command(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    (tmp_path / "a.jsonl.zst").write_bytes(b"\x28\xb5\x2f\xfd")
    for package in ("pyarrow", "zstandard", "huggingface_hub"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(EnvironmentProblem, match="needs the package 'pyarrow'") as caught:
        list(open_source(tmp_path / "a.parquet").rows(Problems()))
    assert caught.value.fix == "pip install 'tunesmith[data]'"
    with pytest.raises(EnvironmentProblem, match="needs the package 'zstandard'"):
        open_source(tmp_path / "a.jsonl.zst")
    with pytest.raises(EnvironmentProblem, match="needs the package 'huggingface_hub'"):
        expand("hf://datasets/me/set")


def test_a_file_of_a_folder_that_is_named_as_rows_are_is_never_passed_over(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"prompt": "p", "completion": "c"}\n')
    (tmp_path / "b.jsonl").write_text('{"prompt": "q", "completion": "d"}\n', encoding="utf-16")
    (tmp_path / "c.jsonl.gz").write_bytes(b"\x1f\x8bdamaged")
    (tmp_path / "d.csv").symlink_to(tmp_path / "none")
    (tmp_path / "photo.png").write_bytes(b"\x89PNG")
    found = survey(tmp_path)
    assert [path.name for path in found.files] == ["a.jsonl", "b.jsonl", "c.jsonl.gz", "d.csv"]
    assert [path.name for path in found.skipped] == ["photo.png"]


def test_an_empty_folder_and_a_pattern_without_files_are_refused(tmp_path):
    (tmp_path / "photo.png").write_bytes(b"\x89PNG")
    with pytest.raises(MissingError, match=r"photo.png: an image"):
        expand(tmp_path)
    with pytest.raises(MissingError, match="no file matches"):
        expand(str(tmp_path / "*.csv"))


def test_a_pattern_is_the_files_that_match_in_order(tmp_path):
    fill(
        tmp_path,
        {"b.jsonl": ROW, "a.jsonl": ROW, "c.csv": "a\n", "d/e.jsonl": ROW, "x[1].jsonl": ROW},
    )
    assert names(expand(str(tmp_path / "?.jsonl")), tmp_path) == ["a.jsonl", "b.jsonl"]
    assert len(expand(str(tmp_path / "**/*.jsonl"))) == 4
    assert expand(str(tmp_path / "x[1].jsonl")) == [tmp_path / "x[1].jsonl"]
    assert expand("-") == expand(["-"])


def test_a_folder_in_the_hubs_layout_is_read_by_its_front_matter(tmp_path):
    fill(
        tmp_path,
        {"README.md": CARD, "data/train-00000-of-00002.jsonl": ROW, "data/held.jsonl": ROW}
        | {"data/train-00001-of-00002.jsonl": ROW, "other.jsonl": ROW},
    )
    assert names(expand(tmp_path, split="train"), tmp_path) == [
        "data/train-00000-of-00002.jsonl",
        "data/train-00001-of-00002.jsonl",
    ]
    assert names(expand(tmp_path, split="test"), tmp_path) == ["data/held.jsonl"]
    assert len(expand(tmp_path)) == 3
    with pytest.raises(MissingError, match="no files of the split 'validation'") as caught:
        expand(tmp_path, split="validation")
    assert "train, test" in caught.value.why


def test_a_folder_with_shards_is_read_by_their_names(tmp_path):
    fill(tmp_path, {"README.md": "# About\n"})
    for name in ("train-00000-of-00001", "validation-00000-of-00001"):
        fill(tmp_path, {f"data/{name}.parquet": "PAR1"})
    assert names(expand(tmp_path, split="validation"), tmp_path) == [
        "data/validation-00000-of-00001.parquet"
    ]


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        (
            "configs:\n- {config_name: a, data_files: a.csv}\n- {config_name: b, data_files: b.csv}",
            "2 configurations",
        ),
        ("configs: [", "README.md:3: its front matter is not valid YAML"),
    ],
)
def test_a_front_matter_that_decides_nothing_is_refused(tmp_path, entries, said):
    fill(tmp_path, {"README.md": f"---\n{entries}\n---\n", "a.csv": "a\n1\n"})
    (tmp_path / "x-00000-of-00001.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=said):
        expand(tmp_path)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("data/train-00000-of-00001.parquet", "train"),
        ("test/part.csv", "test"),
        ("my_dev.jsonl", "validation"),
        ("latest.jsonl", ""),
        ("trainers.csv", ""),
    ],
)
def test_a_split_is_told_from_a_whole_word_of_the_name(name, split):
    assert split_of(name) == split


def test_a_star_stops_at_a_folders_end_and_two_do_not():
    assert fits("data/a.csv", "data/*.csv")
    assert not fits("data/x/a.csv", "data/*.csv")
    assert fits("data/x/a.csv", "data/**")
    assert fits("a.csv", "**/*.csv")
    assert fits("data/x/a.csv", "data")


def test_a_reference_to_the_hub_has_parts(tmp_path):
    found = parsed("hf://datasets/me/my.set@refs%2Fpr%2F1/data/*.parquet")
    assert (found.repository, found.revision, found.pattern) == (
        "me/my.set",
        "refs/pr/1",
        "data/*.parquet",
    )
    assert parsed("hf:/datasets/me/set").repository == "me/set"
    for wrong in ("hf://me/set", "hf://datasets/set", "hf://models/me/set"):
        with pytest.raises(ConfigError, match="names no dataset"):
            parsed(wrong)


class Hub(BaseHTTPRequestHandler):
    """Answers as the hub's API does: a dataset's files at a commit, and each file with its ETag."""

    COMMIT = "0123456789abcdef0123456789abcdef01234567"
    files: ClassVar[dict[str, bytes]] = {}
    asked: ClassVar[list[str]] = []

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def answer(self):
        path = unquote(self.path.split("?")[0])
        self.asked.append(f"{self.command} {path}")
        of_file = f"/datasets/me/set/resolve/{self.COMMIT}/"
        if path in ("/api/datasets/me/set", "/api/datasets/me/set/revision/v1"):
            siblings = [{"rfilename": name} for name in self.files]
            told = {"id": "me/set", "sha": self.COMMIT, "siblings": siblings}
            self.give(
                200, json.dumps({"private": False, "tags": [], "downloads": 0, **told}).encode()
            )
        elif path.startswith(of_file) and path.removeprefix(of_file) in self.files:
            self.give(200, self.files[path.removeprefix(of_file)])
        else:
            self.give(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def give(self, status, body, headers=None):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/json")
        self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", self.COMMIT)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_):
        """Tests print nothing."""


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The hub's API on this machine, with an empty cache."""
    constants = pytest.importorskip("huggingface_hub.constants")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    monkeypatch.setattr(Hub, "asked", [])
    monkeypatch.setattr(
        Hub,
        "files",
        {
            "README.md": CARD.encode(),
            "data/train-00000-of-00001.jsonl": b'{"a": 1}\n{"a": 2}\n',
            "data/held.jsonl": b'{"a": 3}\n',
            ".gitattributes": b"",
        },
    )
    yield Hub
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.slow
def test_a_dataset_of_the_hub_is_fetched_at_one_commit_and_cached(hub, monkeypatch):
    (path,) = expand("hf://datasets/me/set@v1", split="train")
    assert hub.COMMIT in str(path)
    rows = list(open_source(path).rows(Problems()))
    assert [row.fields["a"].value for row in rows] == [1, 2]
    assert not any("held" in asked or "gitattributes" in asked for asked in hub.asked)
    hub.asked.clear()
    assert expand("hf://datasets/me/set/data/train-*") == [path]
    assert not any(asked.startswith("GET /datasets") for asked in hub.asked)
    assert [p.name for p in expand("hf://datasets/me/set")] == [path.name, "held.jsonl"]


@pytest.mark.slow
def test_what_the_hub_does_not_have_is_said_with_a_way_out(hub, monkeypatch):
    for place, said in [
        ("hf://datasets/me/other", "cannot be fetched: 404"),
        ("hf://datasets/me/set@v2", "cannot be fetched: 404"),
        ("hf://datasets/me/set/x-*.csv", "no file of the dataset matches 'x-.*csv'"),
    ]:
        with pytest.raises(MissingError, match=said) as caught:
            expand(place)
        assert caught.value.fix
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(MissingError, match="cannot be fetched") as caught:
        expand("hf://datasets/me/set")
    assert "127.0.0.1:9" in caught.value.why


def test_a_recipes_places_are_expanded_by_split(tmp_path):
    fill(tmp_path, {"rows/train.jsonl": ROW, "rows/test.jsonl": ROW, "more-1.csv": "a,b\n1,2\n"})
    section = {
        "kind": "files",
        "train": [str(tmp_path / "rows"), str(tmp_path / "more-*.csv")],
        "test": str(tmp_path / "rows"),
    }
    plan = plan_data(recipe_from({"data": {"source": section, "form": "csv"}}))
    assert [(names([file.path], tmp_path)[0], file.split) for file in plan.files] == [
        ("rows/train.jsonl", "train"),
        ("more-1.csv", "train"),
        ("rows/test.jsonl", "test"),
    ]
    assert plan.form == "csv"


def test_a_place_on_the_hub_is_not_relative_to_the_recipe(tmp_path):
    from tunesmith.config import load_recipe

    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "data: {source: {kind: files, train: ['hf://datasets/me/set', rows.jsonl]}}",
        encoding="utf-8",
    )
    source = load_recipe([str(recipe)], []).data.source
    assert source.train == ("hf://datasets/me/set", str(tmp_path / "rows.jsonl"))
