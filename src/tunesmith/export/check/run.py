"""What lies at a place, and which checks it takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tunesmith.errors import MissingError, ModelError
from tunesmith.export.check.adapter import check_adapter
from tunesmith.export.check.beside import check_modelfile
from tunesmith.export.check.folder import (
    INDEX,
    check_config,
    embedding_rows,
    read_weights,
    single_file,
    weights_of,
)
from tunesmith.export.check.gguf_model import check_gguf
from tunesmith.export.check.onnx import check_onnx
from tunesmith.export.check.report import CheckOptions, CheckResult, Desk
from tunesmith.export.check.sealed import check_sealed, check_signature, is_sealed
from tunesmith.export.check.shapes import check_shapes
from tunesmith.export.check.tokens import check_tokens
from tunesmith.export.check.tree import files_below, only, sound_texts
from tunesmith.export.check.values import SCANNED_BYTES, scan_gguf, scan_safetensors
from tunesmith.models.files import SafetensorsFile, read_json_object
from tunesmith.store import signatures

__all__ = ["bytes_to_read", "check_model"]

_ADAPTER = frozenset({"adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"})


def check_model(place: str | Path, options: CheckOptions | None = None) -> CheckResult:
    """Everything that is wrong with a model: a folder, an adapter, a GGUF or ONNX file, or a sealed run,
    bundle or merge of ours with several of these in it. Nothing is written, nothing of it is executed.

    Raises:
        MissingError: there is nothing at that place, or no such key.
        ModelError: there is, and it is no model.
        ConfigError: `options.public_key` holds no public key.
        EnvironmentProblem: a package that a check needs is not installed.
    """
    root = Path(place)
    if not root.exists() and not root.is_symlink():
        raise MissingError(f"there is nothing at {root}", fix="name a folder or a file")
    desk = Desk(root, options or CheckOptions())
    if desk.options.public_key is not None and root.is_dir():
        signatures.check_public_key(desk.options.public_key)  # before all is read
    files = files_below(desk)
    if root.is_dir() and is_sealed(root):
        check_sealed(desk, root, files)
    check_signature(desk, root, sum(path.stat().st_size for path in files))
    scan = _wants_values(desk, files)
    for folder, inside in _by_folder(files).items():
        _check_folder(desk, folder, inside, scan=scan)
    if not desk.kinds and not any(found.severity == "error" for found in desk.findings()):
        raise ModelError(
            f"{root} holds no model",
            why="there is no config.json, adapter_config.json, safetensors, GGUF or ONNX file in it",
            fix="name the model's own folder or file",
        )
    kinds = tuple(dict.fromkeys(desk.kinds))
    return CheckResult(root, kinds, desk.findings(), desk.facts)


def bytes_to_read(place: str | Path, options: CheckOptions) -> tuple[int, int]:
    """Bytes of all files, and about how many a check reads, for a progress bar: it reads some more than once."""
    root = Path(place)
    files = [root] if root.is_file() else [f for f in root.rglob("*") if f.is_file()]
    total = sum(file.stat().st_size for file in files)
    weights = sum(f.stat().st_size for f in files if f.suffix in (".safetensors", ".gguf"))
    hashes = total if options.hashes and root.is_dir() and is_sealed(root) else 0
    hashes += total if options.public_key is not None else 0
    scanned = options.values is not False and (options.values or weights <= SCANNED_BYTES)
    return total, hashes + (weights if scanned else 0)


def _wants_values(desk: Desk, files: Sequence[Path]) -> bool:
    if desk.options.values is not None:
        return desk.options.values
    weights = sum(f.stat().st_size for f in files if f.suffix in (".safetensors", ".gguf"))
    if weights > SCANNED_BYTES:
        told = f"the numbers of {weights:,} bytes of weights were not looked at (--values does)"
        desk.about(desk.root, "").note("values-skipped", "", told)
    return weights <= SCANNED_BYTES


def _by_folder(files: Sequence[Path]) -> Mapping[Path, list[Path]]:
    folders: dict[Path, list[Path]] = {}
    for path in files:
        folders.setdefault(path.parent, []).append(path)
    return folders


def _check_folder(desk: Desk, folder: Path, files: Sequence[Path], *, scan: bool) -> None:
    names = {path.name for path in files}
    for path in files:
        _check_file(desk, path, scan=scan)
    weights = any(name.endswith(".safetensors") for name in names)
    texts = [] if desk.root.is_file() else sound_texts(desk, files)
    if desk.root.is_file():
        if weights:
            desk.kinds.append("safetensors")
            for file in single_file(desk, desk.root):
                _scan(desk, folder, {desk.root.name: file}, scan=scan)
    elif names & _ADAPTER:
        _check_adapter_folder(desk, folder, names, scan=scan, texts=texts)
    elif weights or names & {"config.json", INDEX}:
        _check_model_folder(desk, folder, names, scan=scan, texts=texts)
    elif "tokenizer.json" in names or folder.name == "tokenizer":
        desk.kinds.append("tokenizer")
        check_tokens(desk, folder, None, None, texts=texts)


def _check_file(desk: Desk, path: Path, *, scan: bool) -> None:
    """What is a model in one file; told by its content where that has a magic."""
    if path.suffix == ".gguf" or _begins(path, b"GGUF"):
        desk.kinds.append("gguf")
        gguf = check_gguf(desk, path)
        if scan and gguf.is_sound:
            scan_gguf(desk, gguf)
    elif path.suffix == ".onnx":
        desk.kinds.append("onnx")
        check_onnx(desk, path)
    elif path.name == "Modelfile":
        check_modelfile(desk, path)


def _check_adapter_folder(
    desk: Desk, folder: Path, names: set[str], *, scan: bool, texts: list[Path]
) -> None:
    desk.kinds.append("adapter")
    check_adapter(desk, folder)
    _scan(desk, folder, read_weights(desk, folder), scan=scan)
    if "tokenizer.json" in names:
        check_tokens(desk, folder, None, None, texts=texts)


def _check_model_folder(
    desk: Desk, folder: Path, names: set[str], *, scan: bool, texts: list[Path]
) -> None:
    weightless = INDEX not in names and not any(name.endswith(".safetensors") for name in names)
    has_onnx = any(folder.glob("*.onnx")) or any((folder / "onnx").glob("*.onnx"))
    if weightless and has_onnx:
        config = read_json_object(
            folder / "config.json", desk.about(folder / "config.json", "export again")
        )
        check_tokens(desk, folder, embedding_rows({}, config), config, texts=texts)
        return
    if "config.json" not in names and folder != desk.root and not _looks_like_model(names):
        return  # Safetensors of something else, such as an optimizer's state.
    desk.kinds.append("folder")
    files = read_weights(desk, folder)
    weights = weights_of(desk, folder, files)
    config = None
    if "config.json" in names:
        config = check_config(desk, folder, weights)
    else:
        desk.about(folder / "config.json", "copy the model's config.json too").error(
            "config-missing", "", "it is not there", "nothing can load the weights without it"
        )
    whole = bool(files) and all(file.is_sound for file in files.values())
    if config is not None and whole and weights:
        with only([*texts, *(file.path for file in files.values())]) as place:
            check_shapes(desk, folder, place, config)
    check_tokens(desk, folder, embedding_rows(weights, config), config, texts=texts)
    _scan(desk, folder, files, scan=scan)


def _looks_like_model(names: set[str]) -> bool:
    return INDEX in names or "model.safetensors" in names


def _scan(desk: Desk, folder: Path, files: Mapping[str, SafetensorsFile], *, scan: bool) -> None:
    for name, file in files.items():
        if scan and file.is_sound:
            scan_safetensors(desk, folder / name, file)


def _begins(path: Path, magic: bytes) -> bool:
    with path.open("rb") as stream:
        return stream.read(len(magic)) == magic
