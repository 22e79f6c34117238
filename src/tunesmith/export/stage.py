"""The export stage: write each form, prove it, and seal the bundle."""

from __future__ import annotations

import gc
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from tunesmith.config import ExportConfig, Form, Recipe
from tunesmith.errors import EngineError, InterruptedRun, ModelError, ParityError, StorageError
from tunesmith.export import weights
from tunesmith.export.card import card
from tunesmith.export.certify import Expected, files_of, measure
from tunesmith.export.forms import KINDS, PATHS, SERVED, Limits, Sources, finite
from tunesmith.export.modelfile import modelfile
from tunesmith.export.parity import CLEAR_MARGIN_NATS, FormParity, refuse_below
from tunesmith.export.plan import ExportPlan, check_space, plan_export
from tunesmith.export.reference import Reference, open_reference, record_reference
from tunesmith.export.same_weights import COMPARED
from tunesmith.export.versions import made_with
from tunesmith.models.adapters import has_adapter, load_trained
from tunesmith.store import (
    Artifact,
    Run,
    flush_to_disk,
    reach,
    signatures,
    storage_errors,
)
from tunesmith.telemetry import Bar, progress

__all__ = ["ExportResult", "run", "sign_sealed"]

MERGED = "scratch/float32"
MEASURED = "scratch/parity"
FACTS = "scratch/facts"
SHARED = "scratch/shared"
QUANTISED = "scratch/quantised-base.json"
VERSIONS = "scratch/versions.json"

_REFERENCE, _PROVE = 2, 3
"""Parts of the bar for each prompt, and below for the rest: about as long as each other for the embedded model."""
_MERGE, _WRITE = 10, 16


@dataclass(frozen=True)
class ExportResult:
    """A sealed bundle.

    Attributes:
        artifact: the sealed directory.
        forms: form -> its file or folder.
        parity: form -> how close it is to the trained model.
    """

    artifact: Artifact
    forms: Mapping[Form, Path]
    parity: Mapping[Form, FormParity]


def run(
    recipe: Recipe, at: Run, dataset: Artifact, trained: Artifact, report: Artifact | None = None
) -> ExportResult:
    """Write the forms that the recipe names, compare each with the trained model, and seal.

    An unfinished export in `at` goes on with the whole files and figures that it has; with none when
    another version of this program or of a package made them.

    Args:
        report: the evaluation whose figures the model card shows, if there is one.

    Raises:
        ConfigError: a key that would have no effect, or `adapter` for a run without one.
        ModelError: another base or renderer than was trained with, damaged weights, or an
            architecture that cannot be converted.
        ParityError: a form is not the trained model; nothing is sealed.
        StorageError: too little room, or the disk refuses.
        InterruptedRun: the user stopped it; what is whole is kept.
    """
    plan = plan_export(recipe, dataset, trained, report)
    with storage_errors(at.dir):
        _forget_other_versions(at)
    check_space(plan, at, len(plan.renderer.tokenizer))
    at.write_json(VERSIONS, made_with())
    parts = _REFERENCE * len(plan.rows) + _MERGE + len(plan.limits) * _of_a_form(plan)
    with _resumable(), storage_errors(at.dir), progress("Export", parts, unit="parts") as bar:
        reference, sources = _prepare(plan, at, bar), _sources(plan, at)
        _write(plan, at, sources, bar)
        measured = _certify(plan, at, Expected(sources, reference), bar)
    return _seal(plan, at, measured)


@contextmanager
def _resumable() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt as error:
        raise InterruptedRun(
            "the export was stopped before its end",
            why="Ctrl-C was pressed; nothing is sealed, whole files are kept",
            fix="give the same command again, with --resume for `tunesmith export`",
        ) from error


def _forget_other_versions(at: Run) -> None:
    path = at.dir / VERSIONS
    if path.is_file() and json.loads(path.read_text(encoding="utf-8")) != made_with():
        _discard(at, list(PATHS))
        # The versions go last: killed in between, the next start removes the rest.
        for place in [at.dir / "tokenizer", *(at.dir / "scratch").iterdir(), path]:
            shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)


def _prepare(plan: ExportPlan, at: Run, bar: Bar) -> Reference:
    """The reference, and the merge in float32 below `scratch/` when a form needs it."""
    import torch

    given = plan.given
    reference = open_reference(at, plan.prompts, given, plan.answer_tokens)
    made = all(_is_whole(at, form) for form in plan.limits if KINDS[form].needs_merge)
    merged = made or (at.dir / MERGED).is_dir()
    if reference is None or not merged:
        bar.advance(0, "loading the trained model")
        model = load_trained(plan.trained, plan.base, torch.float32)
        if reference is None:
            bar.advance(0, "reference answers")
            reach("export-reference")
            reference = record_reference(
                model, plan.renderer, plan.prompts, given, plan.answer_tokens, at, bar.advance
            )
        else:
            bar.advance(_REFERENCE * len(plan.rows))
        bar.advance(0, "merging in float32")
        if not merged:
            with _whole_folder(at, MERGED) as folder:
                reach("export-merge")
                weights.save_merged(weights.merge(model), plan.renderer, folder)
        del model
        gc.collect()
        bar.advance(_MERGE)
    else:
        bar.advance(_REFERENCE * len(plan.rows) + _MERGE)
    _ask_quantised(plan, at, reference, bar)
    return reference


def _ask_quantised(plan: ExportPlan, at: Run, reference: Reference, bar: Bar) -> None:
    """What it changes that an adapter trained on a quantised base is put on the original one."""
    quantised = plan.trained.facts.get("quantised_base")
    if quantised is None or not has_adapter(plan.trained) or (at.dir / QUANTISED).is_file():
        return
    from tunesmith.export.merge.quantised import ROWS, quantised_base_effect

    bar.advance(0, "the base as it was trained on")
    adapter = plan.trained.folder("adapter")
    rows, starts = reference.rows[:ROWS], reference.starts[:ROWS]
    effect = quantised_base_effect(
        plan.base, adapter, quantised, rows, starts, of=f"{plan.split}.jsonl"
    )
    at.write_json(QUANTISED, effect.as_dict() | {"told": effect.told})


def _of_a_form(plan: ExportPlan) -> int:
    return _WRITE + _PROVE * len(plan.rows)


def _sources(plan: ExportPlan, at: Run) -> Sources:
    shared = at.path(f"{SHARED}/x").parent
    return Sources(
        merged=at.dir / MERGED,
        base=plan.base,
        trained=plan.trained,
        renderer=plan.renderer,
        name=f"{plan.base.name} {plan.name}",
        scratch=shared,
        calibration=plan.calibration,
        config=plan.config,
        validation=plan.validation,
    )


def _write(plan: ExportPlan, at: Run, sources: Sources, bar: Bar) -> None:
    if not (at.dir / "tokenizer").is_dir():
        with _whole_folder(at, "tokenizer") as folder:
            weights.save_tokenizer(plan.renderer, folder)
    for form in plan.limits:
        bar.advance(0, f"writing {form}")
        if not _is_whole(at, form):
            _write_form(form, at, sources)
        bar.advance(_WRITE)


def _is_whole(at: Run, form: Form) -> bool:
    """A form's facts are written before it gets its name."""
    return (at.dir / PATHS[form]).exists() and (at.dir / f"{FACTS}/{form}.json").exists()


def _write_form(form: Form, at: Run, sources: Sources) -> None:
    """A form under its name when it is whole, after its facts."""
    path, write = PATHS[form], KINDS[form].writer()
    reach("export-form")
    if path.endswith(".gguf"):
        with at.writing(path) as temporary:
            facts = write(sources, temporary)
            at.write_json(f"{FACTS}/{form}.json", facts)
            reach("export-facts")
    else:
        shutil.rmtree(at.dir / path, ignore_errors=True)
        with _whole_folder(at, path) as folder:
            facts = write(sources, folder)
            at.write_json(f"{FACTS}/{form}.json", facts)
            reach("export-facts")


@contextmanager
def _whole_folder(at: Run, name: str) -> Iterator[Path]:
    """A folder that appears under its name only when it is complete.

    Raises:
        StorageError: the disk refuses.
    """
    from safetensors import SafetensorError

    target, temporary = at.path(name), at.path(f"scratch/{Path(name).name}.new")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with storage_errors(target):
            temporary.mkdir(parents=True)
            yield temporary
            for file in sorted(temporary.rglob("*")):
                if file.is_file():
                    flush_to_disk(file)
            os.replace(temporary, target)
    except SafetensorError as error:
        # The writer of safetensors files reports the disk's refusal as its own error.
        raise StorageError(
            f"cannot write {target}",
            why=str(error),
            fix="free some space, or set another `workspace`",
        ) from error


def _certify(plan: ExportPlan, at: Run, expected: Expected, bar: Bar) -> dict[Form, FormParity]:
    """The figures of every form.

    Raises:
        ParityError: names all forms that failed; their files are removed, so that a resumed export
            makes them again.
    """
    measured: dict[Form, FormParity] = {}
    problems: dict[Form, str] = {}
    for form, limits in plan.limits.items():
        bar.advance(0, f"proving {form}")
        reach("export-prove")
        found = _measured_before(at, form, limits, expected.reference.identity)
        try:
            measured[form] = found or measure(form, at.dir, expected, limits)
            at.write_json(f"{MEASURED}/{form}.json", asdict(measured[form]))
        except ParityError as error:
            problems[form] = error.what
        except (ModelError, EngineError) as error:
            # It was written and cannot be loaded: kept, it would fail every resume.
            problems[form] = f"it cannot be loaded: {error.what} ({_first_line(error.why)})"
        reach("export-proved")
        gc.collect()
        bar.advance(_PROVE * len(plan.rows))
    at.write_json("scratch/parity.json", _certificate(plan, at, measured) | {"problems": problems})
    try:
        refuse_below(measured, problems, at.dir / "scratch/parity.json")
    except ParityError:
        _discard(at, [*problems, *(form for form, found in measured.items() if found.beyond())])
        raise
    return measured


def _first_line(text: str) -> str:
    return text.partition("\n")[0]


def _measured_before(at: Run, form: Form, limits: Limits, asked: str) -> FormParity | None:
    """What an interrupted export measured on these very files and rows, under the limits of now."""
    path = at.dir / f"{MEASURED}/{form}.json"
    if not path.is_file():
        return None
    kept = json.loads(path.read_text(encoding="utf-8"))
    if set(kept) != {field.name for field in fields(FormParity)}:
        return None
    if kept["asked"] != asked or kept["sha256"] != files_of(form, at.dir):
        return None
    if form in COMPARED and not kept["weights"]:
        return None  # Beyond the limits of then, its weights were not looked at.
    return FormParity(**kept | {"limits": finite(limits)})


def _discard(at: Run, forms: list[Form]) -> None:
    for form in forms:
        place = at.dir / PATHS[form]
        shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)
        for kept in (MEASURED, FACTS):
            (at.dir / f"{kept}/{form}.json").unlink(missing_ok=True)
    for kept in (MERGED, SHARED):
        shutil.rmtree(at.dir / kept, ignore_errors=True)


def _certificate(plan: ExportPlan, at: Run, measured: Mapping[Form, FormParity]) -> dict[str, Any]:
    """What `parity.json` holds."""
    return {
        "reference": "base + adapter, transformers, float32"
        if "adapter/adapter_config.json" in plan.trained.files
        else f"{'merged' if plan.trained.kind == 'merge' else 'trained'} weights, transformers, float32",
        "prompts": f"first {len(plan.rows)} rows of {plan.split}.jsonl",
        "dataset_sha256": plan.dataset.sha256,
        "trained_sha256": plan.trained.sha256,
        "answer_tokens": plan.answer_tokens,
        "clear_margin_nats": CLEAR_MARGIN_NATS,
        "renderer_fingerprint": plan.renderer.fingerprint,
        "stop_ids": list(plan.renderer.stop_ids),
        **_quantised(at),
        "forms": {
            form: parity.as_dict() | {"facts": _facts(at, form)}
            for form, parity in measured.items()
        },
    }


def _quantised(at: Run) -> dict[str, Any]:
    path = at.dir / QUANTISED
    return (
        {"quantised_base": json.loads(path.read_text(encoding="utf-8"))} if path.is_file() else {}
    )


def _facts(at: Run, form: Form) -> Mapping[str, Any]:
    """What the form's writer said of it."""
    text = (at.dir / f"{FACTS}/{form}.json").read_text(encoding="utf-8")
    facts: dict[str, Any] = json.loads(text)
    return facts


def sign_sealed(config: ExportConfig, artifact: Artifact) -> None:
    """Sign a sealed bundle with the recipe's key, unless it is signed with that one.

    Also for a bundle that was sealed before, by a run that ended before it could sign or had no key.
    """
    if config.signing_key is None:
        return
    key = Path(config.signing_key).expanduser()
    if not signatures.is_signed_by(artifact.dir, key):
        reach("export-sign")
        signatures.sign(artifact.dir, key)


def _seal(plan: ExportPlan, at: Run, measured: Mapping[Form, FormParity]) -> ExportResult:
    ggufs: list[Form] = [form for form in SERVED if form in measured]
    if ggufs:
        at.write_text("Modelfile", modelfile(plan.renderer, PATHS[ggufs[0]], plan.system))
    at.write_json("parity.json", _certificate(plan, at, measured))
    at.write_text(
        "README.md", card(plan, measured, _quantised(at).get("quantised_base", {}).get("told", ""))
    )
    facts = {
        "forms": {form: PATHS[form] for form in measured},
        "parity": {form: parity.as_dict() for form, parity in measured.items()},
        "answer_tokens": plan.answer_tokens,
        **plan.renderer.as_facts(),
        "base": {"name": plan.base.name, "sha256": plan.base.sha256},
        "name": plan.name,
        # What a merge of the bundle's adapter must know.
        **{
            name: plan.trained.facts[name]
            for name in ("precision", "quantised_base")
            if name in plan.trained.facts
        },
    }
    artifact = at.finish(facts)
    sign_sealed(plan.config, artifact)
    paths: dict[Form, Path] = {form: at.dir / PATHS[form] for form in measured}
    return ExportResult(artifact, paths, measured)
