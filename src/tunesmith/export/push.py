"""A sealed bundle to a model hub: checked first, private unless asked otherwise, in one commit."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.config import Form
from tunesmith.errors import ConfigError, EnvironmentProblem, MissingError, StorageError, reason_of
from tunesmith.export.card_usage import library_line
from tunesmith.export.forms import KINDS, SERVED
from tunesmith.registry import nearest
from tunesmith.store import MANIFEST, Artifact, signatures

if TYPE_CHECKING:
    from huggingface_hub import HfApi

__all__ = ["Pushed", "Upload", "push", "told_places", "uploads"]

TOKEN_VARIABLE = "HF_TOKEN"
_LIBRARY = re.compile(r"^library_name: .*\n", re.MULTILINE)
_NAME = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_CERTIFICATE = "parity.json"
_ALWAYS = ("README.md", _CERTIFICATE)
_TOKENIZER = "tokenizer"


@dataclass(frozen=True)
class Upload:
    """A file, and its name on the hub. `text` replaces the file's content when it is given."""

    source: Path
    name: str
    bytes: int
    text: str | None = None


@dataclass(frozen=True)
class Pushed:
    """What was uploaded.

    Attributes:
        url: the commit; empty after a dry run.
        public: whether everybody can read it; None when nobody was asked.
    """

    repository: str
    url: str
    files: tuple[Upload, ...]
    public: bool | None = None

    @property
    def n_bytes(self) -> int:
        """Of all files; the hub does not take again what it has."""
        return sum(file.bytes for file in self.files)


def uploads(bundle: Artifact, repository: str, forms: Sequence[str] = ()) -> tuple[Upload, ...]:
    """The files to upload, in order of their names.

    All forms keep the layout of the sealed folder, so that hashes and signature can be checked on the
    other side. A single form that is a folder goes to the root, where libraries look for it, with the
    tokenizer beside it; the card's snippets name the repository, and the certificate the files as they are there.

    Raises:
        ConfigError: the bundle has no such form.
    """
    has: dict[Form, str] = dict(bundle.facts["forms"])
    unknown = [form for form in forms if form not in has]
    if unknown:
        raise ConfigError(
            f"the bundle {bundle.dir} has no form {unknown[0]!r}{nearest(unknown[0], has)}",
            fix=f"name one of: {', '.join(has)}",
        )
    if not forms or set(forms) == set(has):
        return tuple(_whole(bundle))
    chosen: list[Form] = [form for form in has if form in forms]
    alone = chosen[0] if len(chosen) == 1 and not has[chosen[0]].endswith(".gguf") else None
    root = [] if alone is None else [has[alone]]
    if alone is not None and KINDS[alone].template == "bundle":
        root.append(_TOKENIZER)  # Its folder has none of its own.
    found = list(_some(bundle, [has[form] for form in chosen], root))
    served = _served(has, has), _served(has, chosen)
    if served[1] is None:
        found = [file for file in found if file.name != "Modelfile"]
    found = [_partial(_renamed(_card(file, repository, alone), *served), chosen) for file in found]
    if alone is not None:
        found = [_certificate(file, alone) for file in found]
    return tuple(sorted(found, key=lambda file: file.name))


def _served(has: Mapping[Form, str], forms: Iterable[Form]) -> str | None:
    """The file that Modelfile and card name, of these forms."""
    return next((has[form] for form in SERVED if form in forms), None)


def _whole(bundle: Artifact) -> Iterator[Upload]:
    names = [*bundle.files, MANIFEST]
    if signatures.is_signed(bundle.dir):
        # The signature covers the claim too.
        names += [signatures.SIGNATURE, "run.json"]
    for name in sorted(names):
        path = bundle.dir / name
        yield Upload(path, name, path.stat().st_size)


def told_places(bundle: Artifact, files: Iterable[Upload]) -> list[str]:
    """Folders of this machine that the files to be sent name: bundles made by earlier versions say so."""
    if MANIFEST not in {file.name for file in files}:
        return []
    parents = json.loads((bundle.dir / MANIFEST).read_text(encoding="utf-8"))["parents"]
    return sorted({parent["path"] for parent in parents if Path(parent["path"]).is_absolute()})


def _some(bundle: Artifact, paths: Sequence[str], root: Sequence[str]) -> Iterator[Upload]:
    """The files of some forms, and what every push has; those of the folders `root` go to the root."""
    for name, entry in bundle.files.items():
        first, _, rest = name.partition("/")
        if first in root:
            yield Upload(bundle.dir / name, rest, entry.bytes)
        elif (
            first in paths or name in (*_ALWAYS, "Modelfile") or (first == _TOKENIZER and not root)
        ):
            yield Upload(bundle.dir / name, name, entry.bytes)


def _card(file: Upload, repository: str, alone: Form | None) -> Upload:
    """The card with snippets that name the repository, where its folder is now the root."""
    if file.name != "README.md" or alone is None:
        return file
    folder = KINDS[alone].path
    text = file.source.read_text(encoding="utf-8")
    told = {
        f'from_pretrained("{folder}")': f'from_pretrained("{repository}")',
        f'(base, "{folder}")': f'(base, "{repository}")',
        f"vllm serve ./{folder}\n": f"vllm serve {repository}\n",
        f"with `{folder}` for `merged`": f"with `{repository}` for `merged`",
        f'import onnxruntime_genai as og\n\nmodel = og.Model("{folder}")\n': (
            "import onnxruntime_genai as og\nfrom huggingface_hub import snapshot_download\n\n"
            f'model = og.Model(snapshot_download("{repository}"))\n'
        ),
    }
    if KINDS[alone].template == "bundle":
        told[f'from_pretrained("{_TOKENIZER}")'] = f'from_pretrained("{repository}")'
    for before, after in told.items():
        text = text.replace(before, after)
    return Upload(file.source, file.name, len(text.encode("utf-8")), text)


def _certificate(file: Upload, alone: Form) -> Upload:
    """The certificate with the hashes of the form that is sent under the names of its files at the root."""
    if file.name != _CERTIFICATE:
        return file
    told = json.loads(file.source.read_text(encoding="utf-8"))
    figures = told.get("forms", {}).get(alone, {})
    if "sha256" not in figures:
        return file
    folder = f"{KINDS[alone].path}/"
    figures["sha256"] = {
        name.removeprefix(folder): sha256 for name, sha256 in figures["sha256"].items()
    }
    text = json.dumps(told, indent=2, ensure_ascii=False) + "\n"
    return Upload(file.source, file.name, len(text.encode("utf-8")), text)


def _renamed(file: Upload, named: str | None, sent: str | None) -> Upload:
    """Modelfile and card with a GGUF file in their commands that is sent."""
    commands = {"Modelfile": f"FROM ./{named}", "README.md": f"llama-server -m {named} "}
    if named is None or sent in (None, named) or file.name not in commands:
        return file
    text = file.source.read_text(encoding="utf-8") if file.text is None else file.text
    command = commands[file.name]
    text = text.replace(command, command.replace(named, str(sent)))
    return Upload(file.source, file.name, len(text.encode("utf-8")), text)


def _partial(file: Upload, sent: Sequence[Form]) -> Upload:
    """The card says which forms are here, and what loads them: it tells how to run all that were made."""
    if file.name != "README.md":
        return file
    text = file.source.read_text(encoding="utf-8") if file.text is None else file.text
    head = "## How to run\n\n"
    told = (
        f"Of the forms only these are in this repository: {', '.join(sent)}. `{_CERTIFICATE}` names the files of "
        "the others as the whole bundle has them.\n\n"
    )
    text = _LIBRARY.sub(library_line(sent), text.replace(head, head + told, 1), count=1)
    return Upload(file.source, file.name, len(text.encode("utf-8")), text)


def push(
    bundle: Artifact,
    repository: str,
    *,
    forms: Sequence[str] = (),
    public: bool = False,
    update: bool = False,
    endpoint: str | None = None,
    token_file: Path | None = None,
    dry_run: bool = False,
) -> Pushed:
    """Upload a bundle, or some of its forms, as one commit.

    Args:
        bundle: sealed; every file's hash is checked first.
        repository: OWNER/NAME.
        forms: which; all when empty.
        public: make a new or empty repository public; a new one is private otherwise.
        update: add a commit to a repository that is there.
        endpoint: of the hub; `HF_ENDPOINT` or the public one when None.
        token_file: file that holds the access token; else `HF_TOKEN`, else the one that
            `hf auth login` keeps.
        dry_run: list the files, send nothing.

    Raises:
        ConfigError: the repository's name, a form, the endpoint, a token that the hub does not take, a repository
            that is there without `update`, or a private one that should be public.
        ArtifactError: a file is not the one that was sealed.
        MissingError: no token, no such repository, or the hub cannot be reached.
        EnvironmentProblem: `huggingface_hub` is not installed.
    """
    if not _NAME.fullmatch(repository):
        raise ConfigError(f"{repository!r} is no name of a repository", fix="write OWNER/NAME")
    bundle.verify()
    files = uploads(bundle, repository, forms)
    if dry_run:
        return Pushed(repository, "", files)
    api = _api(_address(endpoint), token_file)
    with _refusals(repository, api):
        is_public = _ready(api, repository, public=public, update=update)
        url = _commit(api, bundle, repository, files)
    return Pushed(repository, url, files, is_public)


def _ready(api: HfApi, repository: str, *, public: bool, update: bool) -> bool:
    """A repository to push to; returns whether everybody can read it.

    Raises:
        ConfigError: it holds something and `update` is not given, or it is private and should be public.
    """
    if not api.repo_exists(repository):
        api.create_repo(repository, private=not public)
        return public
    info = api.model_info(repository)
    # As a push leaves it that made the repository and then failed.
    is_empty = {file.rfilename for file in info.siblings or ()} <= {".gitattributes"}
    if not (update or is_empty):
        raise ConfigError(
            f"{repository} is on the hub already",
            why="nothing is put over what is there unless you say so",
            fix="add --update for a new commit in it, or choose another name",
        )
    if not public or not info.private:
        return not info.private
    if not is_empty:
        raise ConfigError(
            f"{repository} is on the hub already, and private: --public is for a new repository",
            why="everything in it, and every earlier commit, would become public",
            fix=f"leave --public away, and change it at {api.endpoint}/{repository}/settings if you want that",
        )
    api.update_repo_settings(repository, private=False)
    return True


def _commit(api: HfApi, bundle: Artifact, repository: str, files: Sequence[Upload]) -> str:
    from huggingface_hub import CommitOperationAdd

    operations = [
        CommitOperationAdd(
            file.name, str(file.source) if file.text is None else file.text.encode("utf-8")
        )
        for file in files
    ]
    message = f"{bundle.facts.get('name', 'model')}, tunesmith {bundle.version}"
    made: Any = api.create_commit(
        repository,
        operations,
        commit_message=message,
        commit_description=f"Manifest SHA-256 {bundle.sha256}",
    )
    return str(made.commit_url)


def _api(endpoint: str | None, token_file: Path | None) -> HfApi:
    try:
        from huggingface_hub import HfApi, get_token
    except ModuleNotFoundError as error:
        raise EnvironmentProblem(
            "pushing needs the package 'huggingface_hub', which is not installed",
            fix="pip install 'tunesmith[export]'",
        ) from error
    if token_file is not None:
        if not token_file.is_file():
            raise MissingError(
                f"there is no token file at {token_file}",
                fix="name a file that holds the token alone, or leave --token-file out",
            )
        token: str | None = _one_word(token_file)
    else:
        token = get_token()
    if not token:
        raise MissingError(
            "there is no access token for the hub",
            why=f"neither {TOKEN_VARIABLE} nor `hf auth login` nor --token-file gives one",
            fix=f"export {TOKEN_VARIABLE}=..., with a token that may write",
        )
    return HfApi(endpoint=endpoint, token=token)


def _address(asked: str | None) -> str | None:
    """The hub's address; None for the public one.

    Raises:
        ConfigError: it is none.
    """
    address = asked or os.environ.get("HF_ENDPOINT")
    if address and not re.match(r"https?://[^/\s]+", address):
        raise ConfigError(
            f"{address!r} is no address of a hub",
            why=f"{'--endpoint' if asked else 'HF_ENDPOINT'} takes http:// or https:// with a host",
            fix="write it in full, with https:// in front, or leave it away for the public hub",
        )
    return address or None


def _one_word(path: Path) -> str:
    """An HTTP client's error about anything else would spell out what stands in the file."""
    text = path.read_bytes().decode("ascii", "replace").strip()
    if not text.isascii() or len(text.split()) > 1:
        raise ConfigError(
            f"the token file {path} holds more than an access token",
            fix="leave the token alone in it, on one line",
        )
    return text


@contextmanager
def _refusals(repository: str, api: HfApi) -> Iterator[None]:
    """The hub's errors as ours; a token never stands in them."""
    from huggingface_hub.errors import HfHubHTTPError

    # The base is the HTTP client's own: a refused connection is one of those. A file that could not be
    # uploaded is a RuntimeError.
    kinds = (*HfHubHTTPError.__mro__[:2], ValueError, RuntimeError)
    try:
        yield
    except (*kinds, OSError) as error:
        if isinstance(error, StorageError):
            raise
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403):
            raise ConfigError(
                f"{api.endpoint} does not let this access token push to {repository}",
                why=f"it answered {status}: the token is "
                + ("wrong or expired" if status == 401 else "not one that may write there"),
                fix=f"make one that may write there, and give it by {TOKEN_VARIABLE}, `hf auth login` or --token-file",
            ) from error
        said = reason_of(error)
        secret = str(api.token or "")
        raise MissingError(
            f"{repository} could not be pushed: {said.replace(secret, '***') if secret else said}",
            why=f"asked was {api.endpoint}; a commit is made only when all files are there, so nothing "
            "of this push is visible",
            fix="check the name, the network and whether the token may write there; give the command "
            "again: files that are there already are not sent again",
        ) from error
