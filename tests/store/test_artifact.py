"""Sealed artifacts: what was changed after the seal is noticed, and lineage reaches the raw file."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunesmith.errors import ArtifactError, MissingError, TunesmithError
from tunesmith.store import (
    MANIFEST,
    Artifact,
    Parent,
    Run,
    canonical_json,
    lineage,
    sha256_of_json,
)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)
in_a_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def seal(folder, kind="data", *, inputs=None, parents=(), text="hello"):
    with Run.open(folder, kind, inputs=inputs or {"a": 1}, parents=parents) as at:
        at.write_text("rows.txt", text)
        at.write_text("inner/more.txt", "more")
        at.write_text("scratch/checkpoint", "not sealed")
        return at.finish({"rows": 3})


def test_a_sealed_artifact_reads_back_whole(tmp_path):
    made = seal(tmp_path / "a")
    found = Artifact.open(tmp_path / "a", "data")
    assert found == made
    assert found.facts == {"rows": 3}
    assert set(found.files) == {"rows.txt", "inner/more.txt"}
    assert found.path("rows.txt").read_text() == "hello"
    assert found.folder("inner") == tmp_path / "a/inner"
    found.verify()


def test_scratch_files_are_gone_after_the_seal(tmp_path):
    seal(tmp_path / "a")
    assert not (tmp_path / "a/scratch").exists()


def test_another_kind_is_refused(tmp_path):
    seal(tmp_path / "a")
    with pytest.raises(ArtifactError, match="'data', not 'train'"):
        Artifact.open(tmp_path / "a", "train")


@pytest.mark.parametrize("make", [False, True])
def test_what_was_never_sealed_is_missing(tmp_path, make):
    if make:
        (tmp_path / "a").mkdir()
    with pytest.raises(MissingError, match="not a sealed artifact"):
        Artifact.open(tmp_path / "a")


def test_a_file_in_place_of_an_artifact_is_called_one(tmp_path):
    (tmp_path / "a").write_text("text")
    with pytest.raises(MissingError) as caught:
        Artifact.open(tmp_path / "a")
    assert caught.value.why == "it is a file"


def test_a_deleted_file_is_noticed_when_the_artifact_is_opened(tmp_path):
    seal(tmp_path / "a")
    (tmp_path / "a/rows.txt").unlink()
    with pytest.raises(ArtifactError, match=r"rows\.txt") as caught:
        Artifact.open(tmp_path / "a")
    assert "gone" in caught.value.why


def test_a_file_of_another_size_is_noticed_when_the_artifact_is_opened(tmp_path):
    seal(tmp_path / "a")
    (tmp_path / "a/rows.txt").write_text("hell")
    with pytest.raises(ArtifactError) as caught:
        Artifact.open(tmp_path / "a")
    assert "4 bytes, 5 were sealed" in caught.value.why


def test_a_file_of_the_same_size_is_noticed_when_it_is_read(tmp_path):
    seal(tmp_path / "a")
    (tmp_path / "a/rows.txt").write_text("hullo")
    found = Artifact.open(tmp_path / "a")
    for read in (lambda: found.path("rows.txt"), found.verify):
        with pytest.raises(ArtifactError, match=r"rows\.txt") as caught:
            read()
        assert "SHA-256" in caught.value.why


def test_a_file_that_was_not_sealed_is_not_given_out(tmp_path):
    found = seal(tmp_path / "a")
    (tmp_path / "a/extra.txt").write_text("x")
    with pytest.raises(ArtifactError, match=r"no file 'extra\.txt'"):
        found.path("extra.txt")
    with pytest.raises(ArtifactError, match="no folder 'nothing'"):
        found.folder("nothing")


@in_a_folder
@given(st.data())
def test_a_truncated_manifest_is_refused_at_any_length(tmp_path, data):
    folder = tmp_path / "a"
    if not folder.exists():
        seal(folder)
        shutil.copy(folder / MANIFEST, tmp_path / "whole")
    whole = (tmp_path / "whole").read_bytes()
    (folder / MANIFEST).write_bytes(whole[: data.draw(st.integers(0, len(whole) - 3))])
    with pytest.raises(ArtifactError, match="damaged") as caught:
        Artifact.open(folder)
    assert str(folder) in caught.value.fix


@in_a_folder
@given(st.sampled_from(["kind", "parents", "files", "facts", "inputs", "key"]), json_values)
def test_a_manifest_of_another_form_never_shows_a_traceback(tmp_path, key, value):
    folder = tmp_path / "a"
    if not folder.exists():
        seal(folder)
        shutil.copy(folder / MANIFEST, tmp_path / "whole")
    manifest = json.loads((tmp_path / "whole").read_text())
    (folder / MANIFEST).write_text(json.dumps({**manifest, key: value}))
    with suppress(TunesmithError):
        Artifact.open(folder)


@given(st.dictionaries(st.text(max_size=4), json_values, max_size=4), st.randoms())
def test_the_order_of_inputs_does_not_change_a_key(inputs, random):
    items = list(inputs.items())
    random.shuffle(items)
    assert Run.key_of("train", dict(items), []) == Run.key_of("train", inputs, [])


@given(json_values, json_values)
def test_different_values_have_different_hashes(left, right):
    assert (sha256_of_json(left) == sha256_of_json(right)) == (
        canonical_json(left) == canonical_json(right)
    )


def test_a_parent_counts_by_its_content_and_not_by_its_place():
    here, there, other = (
        Parent("file", "/a", "1" * 64),
        Parent("file", "/b", "1" * 64),
        Parent("file", "/a", "2" * 64),
    )
    assert Run.key_of("data", {}, [here]) == Run.key_of("data", {}, [there])
    assert Run.key_of("data", {}, [here]) != Run.key_of("data", {}, [other])


def family(tmp_path):
    raw = tmp_path / "raw.jsonl"
    raw.write_text("{}\n")
    data = seal(tmp_path / "w/data", parents=[Parent.file(raw)])
    model = Parent("model", "tiny", "0" * 64)
    trained = seal(tmp_path / "w/train", "train", parents=[data.as_parent(), model])
    return raw, data, trained


def test_lineage_reaches_the_raw_file(tmp_path):
    raw, data, trained = family(tmp_path)
    tree = lineage(trained)
    above, model = tree.ancestors
    assert above.artifact == data
    assert model.parent.path == "tiny"
    assert above.ancestors[0].parent == Parent.file(raw)
    assert {node.state for node in (tree, above, model, above.ancestors[0])} == {"present"}


def test_lineage_marks_what_was_changed_or_deleted_since(tmp_path):
    raw, data, trained = family(tmp_path)
    raw.write_text("{ }\n")
    assert lineage(trained).ancestors[0].ancestors[0].state == "changed"
    raw.unlink()
    assert lineage(trained).ancestors[0].ancestors[0].state == "gone"
    manifest = data.dir / MANIFEST
    manifest.write_text(manifest.read_text() + " ")
    assert lineage(trained).ancestors[0].state == "changed"
    manifest.unlink()
    assert lineage(trained).ancestors[0].state == "changed"
    shutil.rmtree(data.dir)
    assert lineage(trained).ancestors[0].state == "gone"


def written(artifact: Artifact) -> list[dict[str, str]]:
    said = [json.loads((artifact.dir / name).read_text()) for name in (MANIFEST, "run.json")]
    assert said[0]["parents"] == said[1]["parents"]
    return said[0]["parents"]


def test_a_manifest_says_where_its_parents_lie_without_the_folders_of_the_user(tmp_path):
    raw, data, trained = family(tmp_path)
    assert [parent["path"] for parent in written(data)] == ["../../raw.jsonl"]
    assert [parent["path"] for parent in written(trained)] == ["../data", "tiny"]
    assert [parent.path for parent in data.parents] == [str(raw)]
    for artifact in (data, trained):
        assert not any(
            str(tmp_path) in (artifact.dir / name).read_text() for name in (MANIFEST, "run.json")
        )


def test_a_parent_far_away_is_a_name_alone_and_not_taken_for_another_of_that_name(tmp_path):
    far = tmp_path / "clients/acme/raw.jsonl"
    far.parent.mkdir(parents=True)
    far.write_text("{}\n")
    place = tmp_path / "a/b/c/w/m/data"
    made = seal(
        place, parents=[Parent.file(far), Parent("model", str(tmp_path / "base"), "0" * 64)]
    )
    assert [parent["path"] for parent in written(made)] == ["raw.jsonl", "base"]
    assert [node.state for node in lineage(made).ancestors] == ["elsewhere", "present"]
    beside = place.parent / "raw.jsonl"
    beside.write_text("another\n")
    assert lineage(made).ancestors[0].state == "elsewhere"
    shutil.copy(far, beside)
    assert lineage(made).ancestors[0].state == "present"


def test_folders_below_the_home_folder_are_not_told_beside_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    raw, client = tmp_path / "raw.jsonl", tmp_path / "acme/raw-2.jsonl"
    client.parent.mkdir()
    for file in (raw, client):
        file.write_text("{}\n")
    made = seal(tmp_path / "runs/data", parents=[Parent.file(raw), Parent.file(client)])
    assert [parent["path"] for parent in written(made)] == ["../../raw.jsonl", "raw-2.jsonl"]


def test_artifacts_that_name_absolute_places_are_read_as_before(tmp_path):
    raw, data, _ = family(tmp_path)
    manifest = data.dir / MANIFEST
    manifest.write_text(manifest.read_text().replace("../../raw.jsonl", str(raw)))
    found = Artifact.open(data.dir)
    assert found.parents == (Parent.file(raw),)
    assert lineage(found).ancestors[0].state == "present"


def test_lineage_survives_the_move_of_a_whole_workspace(tmp_path):
    _, _, trained = family(tmp_path)
    shutil.move(tmp_path / "w", tmp_path / "elsewhere")
    moved = Artifact.open(tmp_path / "elsewhere" / trained.dir.name)
    above = lineage(moved).ancestors[0]
    assert above.state == "present"
    assert above.artifact is not None
    assert above.artifact.dir == tmp_path / "elsewhere/data"
