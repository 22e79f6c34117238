"""Which licences meet in a model: a hub's card names one only where all of them are the same."""

from __future__ import annotations

import shutil

import pytest

from tunesmith.export.licences import Licence, chain, on_card
from tunesmith.models.load import BaseModel
from tunesmith.store import Parent, Run


@pytest.fixture
def base(tmp_path):
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    return BaseModel("base", folder, "b" * 64)


def sealed(folder, kind, *parents, report=None):
    with Run.open(folder, kind, inputs={}, parents=[one for one in parents if one]) as at:
        if report is not None:
            at.write_json("report.json", report)
        return at.finish({})


def dataset(folder, licence):
    return sealed(folder, "data", report={"card": {"license": licence}})


@pytest.mark.parametrize(
    ("front", "data", "licence", "name"),
    [
        ("license: apache-2.0", "Apache-2.0", "apache-2.0", ""),
        ("license: gpl-3.0", "GPL-3.0-only", "gpl-3.0", ""),
        ("license: apache-2.0", "CC-BY-NC-4.0", "other", "base-apache-2.0-data-cc-by-nc-4.0"),
        ("license: mit", "MIT OR Apache-2.0", "other", "base-mit-data-mit-or-apache-2.0"),
        ("license: mit", None, "other", "base-mit-data-unknown"),
        ("license: other\nlicense_name: yi", "MIT", "other", "base-yi-data-mit"),
        ("license: other", "MIT", "other", "base-other-data-mit"),
        ("tags: [a]", "MIT", "other", "base-unknown-data-mit"),
        ("license: unknown", None, "unknown", ""),
    ],
)
def test_one_licence_is_stated_only_where_base_and_data_have_it(
    base, tmp_path, front, data, licence, name
):
    (base.dir / "README.md").write_text(f"---\n{front}\n---\n")
    rows = dataset(tmp_path / "data", data)
    trained = sealed(tmp_path / "train", "train", rows.as_parent(), base.as_parent())
    assert on_card(chain(base, trained, rows)) == (licence, name)


@pytest.fixture
def datasets(tmp_path):
    return [dataset(tmp_path / f"data-{name}", name) for name in ("CC-BY-NC-4.0", "MIT", "0BSD")]


@pytest.fixture
def runs(base, datasets, tmp_path):
    ours = base.as_parent()
    return [
        sealed(tmp_path / f"run-{n}", "train", one.as_parent(), ours)
        for n, one in enumerate(datasets)
    ]


def test_a_merge_has_the_licences_of_all_that_its_parents_were_trained_on(
    base, datasets, runs, tmp_path
):
    ours = base.as_parent()
    # What the forms of an export were compared on is nothing that it was trained on.
    compared = datasets[2].as_parent()
    bundle = sealed(tmp_path / "bundle", "export", compared, runs[1].as_parent())
    first = sealed(tmp_path / "first", "merge", runs[0].as_parent(), ours)
    parents = (first.as_parent(), bundle.as_parent(), runs[0].as_parent())
    merge = sealed(tmp_path / "merge", "merge", *parents, ours)
    found = chain(base, merge, datasets[2])
    assert found == (
        Licence("base", "apache-2.0"),
        Licence("data", "CC-BY-NC-4.0"),
        Licence("data", "MIT"),
    )
    assert on_card(found)[1] == "base-apache-2.0-data-cc-by-nc-4.0-data-mit"


def test_what_is_gone_changed_or_never_sealed_is_not_known(base, datasets, runs, tmp_path):
    ours, whole = base.as_parent(), tmp_path / "whole"
    whole.mkdir()
    (whole / "README.md").write_text("---\nlicense: llama3.2\n---\n")
    models = [Parent("model", str(place), "d" * 64) for place in (whole, tmp_path / "nowhere")]
    parents = (runs[0].as_parent(), *models)
    merge = sealed(tmp_path / "merge", "merge", *parents, ours)
    found = chain(base, merge, datasets[2])[1:]
    assert found == (
        Licence("data", "CC-BY-NC-4.0"),
        Licence("model", "llama3.2"),
        Licence("model", ""),
    )
    report = datasets[0].dir / "report.json"
    report.write_text(report.read_text().replace("CC-BY-NC-4.0", "CC-BY-SA-4.0"))
    assert chain(base, merge, datasets[2])[1] == Licence("data", "")
    shutil.rmtree(datasets[0].dir)
    assert chain(base, merge, datasets[2])[1] == Licence("data", "")
    alone = sealed(tmp_path / "alone", "merge", ours)
    assert chain(base, alone, datasets[2])[1:] == (Licence("data", ""),)
