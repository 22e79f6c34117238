"""Pushing to a hub: a local server speaks the hub's HTTP API (create, preupload, LFS batch, commit)."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from tunesmith.cli.push import push as push_command
from tunesmith.errors import ArtifactError, ConfigError, MissingError
from tunesmith.export.card_usage import usage
from tunesmith.export.push import push, told_places, uploads
from tunesmith.models.load import BaseModel
from tunesmith.store import Artifact, Run, signatures

# The hub's library passes files to its HTTP client in a way that the client calls old.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

TOKEN = "hf_secretsecretsecret"
LARGE = (".safetensors", ".gguf")


class Hub(ThreadingHTTPServer):
    """Repositories in memory: name -> file -> bytes."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories, self.private, self.stored, self.commits = {}, {}, {}, []
        self.broken = ""

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def _json(self, value, status=200, headers=()):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        for name, text in headers:
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(body)

    def _body(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def _allowed(self):
        if self.headers.get("Authorization") == f"Bearer {TOKEN}":
            return True
        self._body()
        self._json({"error": "Invalid credentials"}, 401)
        return False

    def do_GET(self):
        if not self._allowed():
            return
        name = self.path.removeprefix("/api/models/").split("?")[0].split("/revision/")[0]
        if name in self.server.repositories:
            names = [".gitattributes", *self.server.repositories[name]]
            files = [{"rfilename": file} for file in names]
            private = self.server.private[name]
            self._json({"id": name, "sha": "0" * 40, "siblings": files, "private": private})
        else:
            headers = [("X-Error-Code", "RepoNotFound")]
            self._json({"error": "Repository not found"}, 404, headers)

    def do_PUT(self):
        content = self._body()
        if self.path.endswith("/settings"):
            name = self.path.removeprefix("/api/models/").removesuffix("/settings")
            self.server.private[name] = json.loads(content)["visibility"] == "private"
            self._json({})
            return
        oid = self.path.rsplit("/", 1)[1]
        if hashlib.sha256(content).hexdigest() != oid:
            self._json({"error": "bad hash"}, 400)
            return
        self.server.stored[oid] = content
        self._json({})

    def do_POST(self):
        if not self._allowed():
            return
        body, path, hub = self._body(), self.path.split("?")[0], self.server
        if hub.broken and hub.broken in path:
            self._json({"error": f"no room for {TOKEN}"}, 507)
        elif path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            hub.repositories[name] = {}
            hub.private[name] = asked.get("visibility") == "private"
            self._json({"url": f"{hub.url}/{name}"})
        elif path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif "/preupload/" in path:
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            self._json({"files": files})
        elif path.endswith("/info/lfs/objects/batch"):
            objects = [
                {
                    **wanted,
                    "actions": {"upload": {"href": f"{hub.url}/store/{wanted['oid']}"}},
                }
                for wanted in json.loads(body)["objects"]
            ]
            self._json({"transfer": "basic", "objects": objects})
        elif "/commit/" in path:
            self._commit(path.removeprefix("/api/models/").split("/commit/")[0], body)
        else:
            self._json({"error": path}, 404)

    def _commit(self, name, body):
        lines = [json.loads(line) for line in body.splitlines()]
        files = self.server.repositories[name]
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.server.commits.append(value)
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.stored[value["oid"]]
        url = f"{self.server.url}/{name}/commit/{'1' * 40}"
        self._json({"commitUrl": url, "commitOid": "1" * 40, "success": True})


@pytest.fixture
def hub(monkeypatch):
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    # The public hub's own storage protocol has no stand-in; without it files go by Git LFS.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


CARD = 'Use it: AutoModelForCausalLM.from_pretrained("merged")\nPeftModel.from_pretrained(base, "adapter")\n'
CARD += 'vllm serve ./merged\nAutoTokenizer.from_pretrained("tokenizer")\n'
CARD = f"## How to run\n\n{CARD}"


@pytest.fixture
def sealed(tmp_path):
    with Run.open(tmp_path / "bundle", "export", inputs={}) as at:
        at.write_text("README.md", CARD)
        at.write_text("parity.json", "{}")
        at.write_text("Modelfile", "FROM ./model-f16.gguf\n")
        at.write_text("tokenizer/tokenizer.json", "{}")
        at.write_text("adapter/adapter_config.json", "{}")
        at.write_text("adapter/adapter_model.safetensors", "a" * 300)
        at.write_text("merged/config.json", "{}")
        at.write_text("merged/model.safetensors", "w" * 5000)
        at.write_text("model-f16.gguf", "g" * 7000)
        forms = {"adapter": "adapter", "merged": "merged", "gguf-f16": "model-f16.gguf"}
        return at.finish({"forms": forms, "name": "tiny"})


def test_a_whole_bundle_arrives_byte_for_byte_in_one_private_commit(hub, sealed):
    signatures_before = {name: sealed.path(name).read_bytes() for name in sealed.files}
    done = push(sealed, "me/tiny", endpoint=hub.url)
    there = hub.repositories["me/tiny"]
    assert {k: v for k, v in there.items() if k != "manifest.json"} == signatures_before
    assert there["manifest.json"] == (sealed.dir / "manifest.json").read_bytes()
    assert hub.private["me/tiny"]
    assert len(hub.commits) == 1
    assert sealed.sha256 in hub.commits[0]["description"]
    assert done.url.endswith("1" * 40)
    assert done.n_bytes == sum(map(len, there.values()))


def test_the_folders_of_this_machine_that_a_manifest_names_are_told(tmp_path):
    with Run.open(tmp_path / "data-1", "data", inputs={}) as at:
        data = at.finish({})
    with Run.open(tmp_path / "bundle", "export", inputs={}, parents=[data.as_parent()]) as at:
        at.write_text("model-f16.gguf", "g")
        at.write_text("merged/config.json", "{}")
        bundle = at.finish({"forms": {"gguf-f16": "model-f16.gguf", "merged": "merged"}})
    assert told_places(bundle, uploads(bundle, "me/tiny")) == []
    assert str(tmp_path).encode() not in (bundle.dir / "manifest.json").read_bytes()
    where = str(tmp_path / "data-1")
    manifest = bundle.dir / "manifest.json"  # as earlier versions wrote it
    manifest.write_text(manifest.read_text().replace("../data-1", where))
    bundle = Artifact.open(bundle.dir)
    assert told_places(bundle, uploads(bundle, "me/tiny")) == [where]
    some = uploads(bundle, "me/tiny", ["merged"])
    assert told_places(bundle, some) == []
    assert not any(where in file.source.read_text() for file in some)
    told = CliRunner().invoke(push_command, [str(bundle.dir), "me/tiny", "--dry-run"]).output
    assert f"its manifest names folders of this machine: {where}" in " ".join(told.split())


def test_what_was_pushed_whole_still_verifies_with_the_public_key(hub, sealed, tmp_path):
    public = signatures.new_key(tmp_path / "key.pem")
    signatures.sign(sealed.dir, tmp_path / "key.pem")
    push(sealed, "me/tiny", endpoint=hub.url)
    for name, content in hub.repositories["me/tiny"].items():
        place = tmp_path / "fetched" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
    signatures.verify(tmp_path / "fetched", public)


def test_one_folder_form_goes_to_the_root_and_the_card_names_the_repository(hub, sealed):
    push(sealed, "me/tiny", forms=["merged"], public=True, endpoint=hub.url)
    there = hub.repositories["me/tiny"]
    assert set(there) == {"README.md", "parity.json", "config.json", "model.safetensors"}
    assert b'from_pretrained("me/tiny")' in there["README.md"]
    assert b"vllm serve me/tiny\n" in there["README.md"]
    assert b"only these are in this repository: merged." in there["README.md"]
    assert not hub.private["me/tiny"]
    names = {file.name for file in uploads(sealed, "me/tiny", ["adapter"])}
    assert names == {
        "README.md",
        "parity.json",
        "adapter_config.json",
        "adapter_model.safetensors",
        "tokenizer.json",
    }
    assert {file.name for file in uploads(sealed, "me/x", ["gguf-f16"])} == {
        *("README.md", "parity.json", "Modelfile", "model-f16.gguf", "tokenizer/tokenizer.json")
    }


@pytest.mark.parametrize("form", ["merged", "adapter"])
def test_the_certificate_names_the_files_of_a_form_at_the_root_as_they_are_there(tmp_path, form):
    hashes = {"merged": {"merged/config.json": "c"}, "adapter": {"adapter/a.safetensors": "a"}}
    figures = {name: {"mean_kl": 0.5, "sha256": files} for name, files in hashes.items()}
    with Run.open(tmp_path / "bundle", "export", inputs={}) as at:
        at.write_json("parity.json", {"prompts": "first 4 rows", "forms": figures})
        for name in (
            "README.md",
            "tokenizer/tokenizer.json",
            *hashes["merged"],
            *hashes["adapter"],
        ):
            at.write_text(name, name)
        bundle = at.finish({"forms": {"merged": "merged", "adapter": "adapter"}})
    files = {file.name: file for file in uploads(bundle, "me/x", [form])}
    told = json.loads(files["parity.json"].text)
    assert files["parity.json"].bytes == len(files["parity.json"].text)
    assert set(told["forms"][form]["sha256"]) < set(files)
    other = "adapter" if form == "merged" else "merged"
    assert told["forms"][other] == figures[other]
    assert {**told, "forms": None} == {"prompts": "first 4 rows", "forms": None}
    whole = {file.name: file for file in uploads(bundle, "me/x")}
    assert whole["parity.json"].text is None


def test_an_adapter_alone_comes_with_its_tokenizer_and_the_card_says_where(hub, sealed):
    push(sealed, "me/tiny", forms=["adapter"], endpoint=hub.url)
    there = hub.repositories["me/tiny"]
    assert there["tokenizer.json"] == (sealed.dir / "tokenizer/tokenizer.json").read_bytes()
    assert b'AutoTokenizer.from_pretrained("me/tiny")' in there["README.md"]
    assert b'PeftModel.from_pretrained(base, "me/tiny")' in there["README.md"]
    assert b'"tokenizer"' not in there["README.md"]
    merged = {file.name for file in uploads(sealed, "me/x", ["merged"])}
    assert not any("tokenizer" in name for name in merged)


def test_the_lines_of_a_form_at_the_root_are_true_there(tmp_path):
    measured = dict.fromkeys(("merged", "awq", "onnx", "adapter"))
    lines = "\n".join(usage(SimpleNamespace(base=BaseModel("me/base", tmp_path, "0")), measured))
    with Run.open(tmp_path / "bundle", "export", inputs={}) as at:
        at.write_text("README.md", f"---\nlibrary_name: transformers\n---\n\n{lines}")
        at.write_text("tokenizer/tokenizer.json", "{}")
        forms = {"merged": "merged", "awq": "awq", "onnx": "onnx", "adapter": "adapter"}
        for folder in forms:
            at.write_text(f"{folder}/config.json", "{}")
        bundle = at.finish({"forms": forms})

    def card_of(form):
        (found,) = [f for f in uploads(bundle, "me/x", [form]) if f.name == "README.md"]
        return found.text

    assert "with `me/x` for `merged`" in card_of("awq")
    assert "vllm serve me/x\n" in card_of("awq")
    assert "from huggingface_hub import snapshot_download\n" in card_of("onnx")
    assert 'og.Model(snapshot_download("me/x"))' in card_of("onnx")
    assert "snapshot_download" not in card_of("merged")
    assert "library_name: transformers\n" in card_of("merged")
    assert "library_name: peft\n" in card_of("adapter")
    assert "library_name" not in card_of("onnx")


@pytest.mark.parametrize("public", [False, True])
def test_who_can_read_the_repository_is_told(hub, sealed, public):
    done = push(sealed, "me/tiny", forms=["adapter"], public=public, endpoint=hub.url)
    again = push(sealed, "me/tiny", forms=["adapter"], update=True, endpoint=hub.url)
    assert done.public is again.public is public is not hub.private["me/tiny"]
    assert push(sealed, "me/tiny", dry_run=True).public is None


def test_an_empty_private_repository_becomes_public(hub, sealed):
    hub.repositories["me/tiny"], hub.private["me/tiny"] = {}, True
    assert push(sealed, "me/tiny", public=True, endpoint=hub.url).public
    assert not hub.private["me/tiny"]


def test_what_is_private_and_holds_something_does_not_become_public(hub, sealed):
    push(sealed, "me/tiny", forms=["adapter"], endpoint=hub.url)
    with pytest.raises(ConfigError, match="me/tiny is on the hub already, and private") as caught:
        push(sealed, "me/tiny", public=True, update=True, endpoint=hub.url)
    assert f"{hub.url}/me/tiny/settings" in caught.value.fix
    assert hub.private["me/tiny"]
    assert len(hub.commits) == 1


def test_a_repository_that_is_there_needs_update(hub, sealed):
    push(sealed, "me/tiny", forms=["merged"], endpoint=hub.url)
    with pytest.raises(ConfigError, match="me/tiny is on the hub already"):
        push(sealed, "me/tiny", endpoint=hub.url)
    assert len(hub.commits) == 1
    push(sealed, "me/tiny", update=True, endpoint=hub.url)
    assert "model-f16.gguf" in hub.repositories["me/tiny"]


def test_a_damaged_bundle_is_not_pushed(hub, sealed):
    (sealed.dir / "model-f16.gguf").write_text("G" * 7000)
    with pytest.raises(ArtifactError):
        push(sealed, "me/tiny", endpoint=hub.url)
    assert hub.repositories == {}


def test_a_dry_run_needs_no_token_and_sends_nothing(hub, sealed, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    done = push(sealed, "me/tiny", endpoint=hub.url, dry_run=True)
    assert (done.url, hub.repositories) == ("", {})
    assert "merged/model.safetensors" in {file.name for file in done.files}


@pytest.mark.parametrize("broken", ["/api/repos/create", "/objects/batch", "/commit/"])
def test_a_refusing_hub_shows_nothing_of_the_push_and_no_token(hub, sealed, broken):
    hub.broken = broken
    with pytest.raises(MissingError, match="me/tiny could not be pushed") as caught:
        push(sealed, "me/tiny", endpoint=hub.url)
    assert TOKEN not in str(caught.value)
    assert hub.repositories.get("me/tiny", {}) == {}
    hub.broken = ""
    push(sealed, "me/tiny", endpoint=hub.url)
    assert len(hub.repositories["me/tiny"]) == len(sealed.files) + 1


def test_modelfile_and_card_name_a_file_that_is_sent(tmp_path):
    ggufs = {"gguf-q8_0": "model-q8_0.gguf", "gguf-q4_k_m": "model-q4_k_m.gguf"}
    with Run.open(tmp_path / "bundle", "export", inputs={}) as at:
        at.write_text("README.md", "| model-q8_0.gguf |\nllama-server -m model-q8_0.gguf --jinja\n")
        at.write_text("Modelfile", "FROM ./model-q8_0.gguf\nSYSTEM x\n")
        for name in (*ggufs.values(), "lora.gguf"):
            at.write_text(name, name)
        bundle = at.finish({"forms": ggufs | {"gguf-lora": "lora.gguf"}})

    def sent(*forms):
        return {f.name: f for f in uploads(bundle, "me/x", forms)}

    one = sent("gguf-q4_k_m")
    assert one["Modelfile"].text == "FROM ./model-q4_k_m.gguf\nSYSTEM x\n"
    assert one["Modelfile"].bytes == len(one["Modelfile"].text)
    assert "llama-server -m model-q4_k_m.gguf --jinja" in one["README.md"].text
    assert "| model-q8_0.gguf |" in one["README.md"].text
    assert "model-q8_0.gguf" not in one
    assert sent("gguf-q8_0", "gguf-lora")["Modelfile"].text is None
    assert "Modelfile" not in sent("gguf-lora")


def test_a_token_file_with_more_than_a_token_is_refused_unspoken(hub, sealed, tmp_path):
    for content in (f"{TOKEN}\nsecond line", f"{TOKEN}\u00e9"):
        (tmp_path / "token").write_text(content, encoding="utf-8")
        with pytest.raises(ConfigError, match="holds more than an access token") as caught:
            push(sealed, "me/tiny", endpoint=hub.url, token_file=tmp_path / "token")
        assert TOKEN not in str(caught.value)


def test_wrong_tokens_names_and_forms_are_told(hub, sealed, tmp_path, monkeypatch):
    (tmp_path / "token").write_text("wrong\n")
    with pytest.raises(
        ConfigError, match="does not let this access token push to me/tiny"
    ) as caught:
        push(sealed, "me/tiny", endpoint=hub.url, token_file=tmp_path / "token")
    assert "401: the token is wrong or expired" in caught.value.why
    assert "HF_TOKEN" in caught.value.fix
    for name in ("tiny", "me/../x/y", "https://host/me/tiny"):
        with pytest.raises(ConfigError, match="is no name of a repository"):
            push(sealed, name, endpoint=hub.url)
    for address in ("ftp://host", "host", "https://"):
        with pytest.raises(ConfigError, match="is no address of a hub"):
            push(sealed, "me/tiny", endpoint=address)
    with pytest.raises(ConfigError, match="did you mean 'gguf-f16'"):
        push(sealed, "me/tiny", forms=["gguf-f61"], endpoint=hub.url)
    with pytest.raises(MissingError, match="no token file") as found:
        push(sealed, "me/tiny", endpoint=hub.url, token_file=tmp_path / "nowhere")
    assert found.value.fix
    with pytest.raises(MissingError, match="could not be pushed"):
        push(sealed, "me/tiny", endpoint="http://127.0.0.1:9")
