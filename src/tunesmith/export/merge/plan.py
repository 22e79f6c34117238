"""The models that are asked for, resolved and held against each other before anything is written."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.errors import ConfigError, ModelError, TunesmithError
from tunesmith.export.merge.asked import Asked, raise_all, settings_of, wrong_with
from tunesmith.export.merge.members import Member, base_of, open_base, open_member, repeated
from tunesmith.export.merge.methods import METHODS, Settings
from tunesmith.export.merge.prompts import Prompts, prompts_of, refuse_other_tokens
from tunesmith.export.merge.tensors import FLOATS, Stored, Weights
from tunesmith.models.load import BaseModel, quiet_transformers
from tunesmith.models.refusals import refusing
from tunesmith.store import sha256_of_file

if TYPE_CHECKING:
    import torch

__all__ = ["HeadNames", "MergePlan", "head_names", "plan_merge", "torch_dtype"]

_MAY_DIFFER = {
    "_name_or_path",
    "architectures",
    "bos_token_id",
    "dtype",
    "eos_token_id",
    "initializer_range",
    "pad_token_id",
    "quantization_config",
    "tie_word_embeddings",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}
"""Keys of a config that change nothing of what the weights compute; tied heads are compared by weights."""


@dataclass(frozen=True)
class MergePlan:
    """Everything a merge reads, checked.

    Attributes:
        base: what adapters are put on and differences are taken from; None when there is no need of one.
        reference: folder whose formats, config and files the result takes.
        prompts: tokenizer and chat template, the same in all parents.
        notes: what the user should know.
    """

    asked: Asked
    settings: Settings
    members: tuple[Member, ...]
    base: BaseModel | None
    reference: Path
    prompts: Prompts
    notes: tuple[str, ...]
    opened: dict[Path, Weights] = field(default_factory=dict, repr=False)

    def weights(self, folder: Path) -> Weights:
        """The tensors of a folder, its headers read once."""
        if folder not in self.opened:
            self.opened[folder] = Weights(folder)
        return self.opened[folder]

    @cached_property
    def names(self) -> HeadNames:
        """Embedding and head of the model."""
        return head_names(self.reference)

    @cached_property
    def out(self) -> Mapping[str, Stored]:
        """What the merged model holds: each tensor in the format that the reference stores it in.

        Where any parent has a head of its own, so has the result; tied weights stay one tensor else.
        """
        stored = dict(self.weights(self.reference).tensors)
        embedding, head = self.names.embedding, self.names.head
        if head is None or embedding not in stored:
            return stored
        own = any(self._has_own_head(member) for member in self.members)
        if own and head not in stored:
            last = max(tensor.file for tensor in stored.values())
            stored[head] = Stored(last, stored[embedding].format, stored[embedding].shape)
        elif not own and self.names.tied:
            stored.pop(head, None)
        return stored

    @property
    def untied(self) -> bool:
        """Whether the result has a head of its own though the reference has none."""
        return self.names.tied and self.names.head in self.out

    def _has_own_head(self, member: Member) -> bool:
        embedding, head = self.names.embedding, str(self.names.head)
        if member.adapter is not None:
            touched = {*member.adapter.pairs, *member.adapter.whole}
            return bool(touched & {f"{head}", f"{embedding}"})
        return not head_names(member.dir).tied and head in self.weights(member.dir).tensors


@dataclass(frozen=True)
class HeadNames:
    """Names of the embedding's weight and the head's, and whether they are one tensor."""

    embedding: str
    head: str | None
    tied: bool


def plan_merge(asked: Asked) -> MergePlan:
    """Resolve and check everything; nothing is written and no weights are read but to hash them.

    Raises:
        TunesmithError: of the kind of the first problem; all problems of a step are named at once:
            first the arguments and paths, then how the models go together.
    """
    problems = wrong_with(asked)
    members: list[Member] = []
    for given in asked.models:
        try:
            members.append(open_member(given))
        except TunesmithError as error:
            problems.append(error)
    base: BaseModel | None = None
    if asked.base is not None:
        try:
            base = open_base(asked.base)
        except TunesmithError as error:
            problems.append(error)
    raise_all(problems)
    base, notes = _settled_base(asked, members, base)
    reference = base.dir if base is not None else members[0].dir
    opened: dict[Path, Weights] = {}
    name = base.name if base is not None else members[0].given
    raise_all(list(_misfits(members, reference, name, opened)))
    prompts = prompts_of(members, reference)
    return MergePlan(
        asked=asked,
        settings=settings_of(asked),
        members=tuple(members),
        base=base,
        reference=reference,
        prompts=prompts,
        notes=(*repeated(members), *notes, *prompts.notes),
        opened=opened,
    )


def _settled_base(
    asked: Asked, members: Sequence[Member], base: BaseModel | None
) -> tuple[BaseModel | None, list[str]]:
    """The base to use, and notes about it.

    Raises:
        ModelError: adapters of different bases, or of another one than is named.
        ConfigError: a base is needed and cannot be told.
    """
    adapters = [member for member in members if member.adapter is not None]
    kind = METHODS[asked.method]
    _refuse_two_bases(members if kind.base and base is None else adapters, by_name=base is None)
    if base is None and (adapters or kind.base):
        base = base_of(list(members))
    if base is None and adapters:
        raise ConfigError(
            f"the base of {adapters[0].given} is not known here",
            why=f"it calls it {_base_name(adapters[0])!r}, which is no folder on this disk",
            fix="name it: --base FOLDER (or --base embedded)",
        )
    if base is None and kind.base:
        raise ConfigError(
            f"--method {asked.method} needs a base",
            why="it merges the models' differences from the model that they were trained on",
            fix="--base FOLDER, or --method linear, which needs none",
        )
    if base is None:
        return None, []
    return base, list(_other_bases(members, base))


def _other_bases(members: Sequence[Member], base: BaseModel) -> Iterator[str]:
    """Notes about models that were not, or perhaps not, trained on the base.

    Raises:
        ModelError: an adapter was trained on another one.
    """
    for member in members:
        if member.base is None:
            if member.adapter is not None and not _same_name(member, base):
                yield (
                    f"{member.given} calls its base {_base_name(member)!r}; it is put on "
                    f"{base.name}, whose shapes fit"
                )
        elif member.base["sha256"] != base.sha256:
            told = f"{member.given} was trained on another base than {base.name}"
            hashes = (
                f"it was {_base_name(member)} with hash {member.base['sha256'][:12]}, "
                f"{base.name} has {base.sha256[:12]}"
            )
            if member.adapter is not None:
                fix = "name the base that it was trained on with --base"
                raise ModelError(told, why=hashes, fix=fix)
            yield f"{told}: {hashes}; it is merged all the same"


def _refuse_two_bases(members: Sequence[Member], *, by_name: bool) -> None:
    """By hash where both are sealed; by name, which may be any path, only when no base is named."""
    known = [m for m in members if m.base is not None]
    for member in known[1:]:
        if member.base["sha256"] != known[0].base["sha256"]:  # type: ignore[index]
            raise _two_bases(known[0], member)
    named = [m for m in members if by_name and m.adapter is not None and m.adapter.base_name]
    for member in named[1:]:
        both_sealed = member.base is not None and named[0].base is not None
        if not both_sealed and _leaf(_base_name(member)) != _leaf(_base_name(named[0])):
            raise _two_bases(named[0], member)


def _two_bases(one: Member, other: Member) -> ModelError:
    def told(member: Member) -> str:
        sha256 = f" ({member.base['sha256'][:12]})" if member.base is not None else ""
        return f"{member.given} was trained on {_base_name(member)}{sha256}"

    return ModelError(
        f"the models were trained on different bases: {told(one)}, {told(other)}",
        why="a change that one base learned means nothing to the other",
        fix="merge models of one base only",
    )


def _base_name(member: Member) -> str:
    if member.base is not None:
        return str(member.base["name"])
    return member.adapter.base_name if member.adapter is not None else ""


def _leaf(name: str) -> str:
    return name.replace("\\", "/").rstrip("/").rpartition("/")[2]


def _same_name(member: Member, base: BaseModel) -> bool:
    return _leaf(_base_name(member)) in (_leaf(base.name), base.dir.name)


def _misfits(
    members: Sequence[Member], reference: Path, name: str, opened: dict[Path, Weights]
) -> Iterator[TunesmithError]:
    """What keeps the models apart: architecture, settings, names and shapes of tensors.

    Args:
        name: what the user calls the reference.

    Raises:
        ModelError: the reference itself cannot be read, or is quantised.
    """
    config = _config(reference)
    opened[reference] = Weights(reference)
    names = head_names(reference)
    _refuse_quantised(opened[reference])
    for member in members:
        try:
            lines = list(_of_adapter(member, opened[reference], names))
            if member.adapter is None and member.dir != reference:
                opened[member.dir] = Weights(member.dir)
                lines = list(_of_config(_config(member.dir), config))
                if [line.partition(" ")[0] for line in lines] == ["vocab_size"]:
                    refuse_other_tokens(member.dir, reference)
                lines += [] if lines else _of_tensors(opened[member.dir], opened[reference], names)
        except ModelError as error:
            yield error
            continue
        if lines:
            more = f"; and {len(lines) - 3} more" if len(lines) > 3 else ""
            yield ModelError(
                f"{member.given} does not fit {name}: {'; '.join(lines[:3])}{more}",
                why="weights are merged number by number, so all models must be built alike",
                fix="merge models of one architecture and vocabulary; for an adapter, name its base "
                "with --base",
            )


def _refuse_quantised(weights: Weights) -> None:
    odd = [n for n, t in weights.tensors.items() if t.format.startswith(("F8", "U8", "I8", "F4"))]
    if odd:
        raise ModelError(
            f"{weights.dir} holds quantised weights, such as {odd[0]}",
            why="weights are merged in the precision that they were trained in",
            fix="name the model in its original precision",
        )


def _of_config(config: Mapping[str, Any], wanted: Mapping[str, Any]) -> Iterator[str]:
    for key in sorted({*config, *wanted} - _MAY_DIFFER):
        if config.get(key) != wanted.get(key):
            yield f"{key} is {config.get(key)!r}, not {wanted.get(key)!r}"


def _of_tensors(found: Weights, wanted: Weights, names: HeadNames) -> Iterator[str]:
    for name in sorted({*found.tensors, *wanted.tensors}):
        one, other = found.tensors.get(name), wanted.tensors.get(name)
        if name == names.head:
            # A tied head is the embedding, stored once or twice.
            one = one or found.tensors.get(names.embedding)
            other = other or wanted.tensors.get(names.embedding)
        if one is None or other is None:
            yield f"{'it lacks' if one is None else 'only it has'} {name}"
        elif one.shape != other.shape:
            yield f"{name} is {one.shape}, not {other.shape}"
        elif (one.format in FLOATS) != (other.format in FLOATS):
            yield f"{name} is stored as {one.format}, not {other.format}"


def _of_adapter(member: Member, base: Weights, names: HeadNames) -> Iterator[str]:
    adapter = member.adapter
    if adapter is None:
        return
    shapes = {name: tensor.shape for name, tensor in base.tensors.items()}
    if names.head is not None and names.embedding in shapes:
        shapes.setdefault(names.head, shapes[names.embedding])
    changes: dict[str, tuple[int, ...]] = {n: pair.shape for n, pair in adapter.pairs.items()}
    changes |= {name: adapter.shapes[inside] for name, inside in adapter.whole.items()}
    for name, shape in changes.items():
        if name not in shapes:
            yield f"it changes {name}, which the base does not have"
        elif name in adapter.whole and name in (names.embedding, names.head):
            if shapes[name] != tuple(shape):
                yield (
                    f"its {name} has shape {tuple(shape)}, the base's {shapes[name]}: tokens were added before it "
                    "was trained, and --base must be the base with these tokens, its tokenizer beside it"
                )
        elif shapes[name] != tuple(shape):
            yield f"it changes {name} of shape {tuple(shape)}, the base has {shapes[name]}"


def _config(folder: Path) -> dict[str, Any]:
    """The model's settings, older spellings read as transformers reads them."""
    from transformers import AutoConfig

    what = f"the config of the model in {folder} cannot be read"
    fix = "check its config.json; the architecture must be one that transformers knows"
    with refusing(what, fix), quiet_transformers():
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        found: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    quantised = found.get("quantization_config")
    if isinstance(quantised, dict) and quantised.get("quant_method"):
        raise ModelError(
            f"{folder} holds quantised weights",
            why=f"its config names {quantised['quant_method']!r}",
            fix="name the model in its original precision",
        )
    return found


def head_names(folder: Path) -> HeadNames:
    """Names of embedding and head, from the architecture alone; no weights are made.

    Raises:
        ModelError: transformers does not know the architecture.
    """
    return _head_names(folder, sha256_of_file(folder / "config.json"))


@lru_cache
def _head_names(folder: Path, _content: str) -> HeadNames:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    what = f"the model in {folder} is of an unknown architecture"
    fix = "use a causal language model that transformers knows, with its own config.json"
    with refusing(what, fix), quiet_transformers(), torch.device("meta"):
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        model.tie_weights()
        embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    names = {id(module): f"{name}.weight" for name, module in model.named_modules()}
    tied = head is not None and head.weight is embedding.weight
    return HeadNames(names[id(embedding)], None if head is None else names[id(head)], tied)


def torch_dtype(stored: Stored) -> torch.dtype:
    """The number format of a stored tensor of floats."""
    import torch

    found: torch.dtype = getattr(torch, FLOATS[stored.format])
    return found
