"""The moving parts of a run: model, optimizer, counters; built, saved and restored as one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from tunesmith.models.load import BaseModel
from tunesmith.store import reach
from tunesmith.telemetry import EnergyMeter
from tunesmith.train import fast, randomness
from tunesmith.train.checkpoint import Checkpoint
from tunesmith.train.identity import changes_of, conditions, identity, refuse_another
from tunesmith.train.methods import METHODS, load_base, trainable
from tunesmith.train.nonfinite import Failure, NotFinite
from tunesmith.train.objectives import Measured, Objective, objective_of, total
from tunesmith.train.plan import TrainPlan
from tunesmith.train.schedule import learning_rate
from tunesmith.train.stopping import Check, checked, go_on
from tunesmith.train.trunk_cache import TrunkCache, served

if TYPE_CHECKING:
    import torch

    from tunesmith.train.memory import Rehearsal

__all__ = ["ModelPlan", "Session", "build", "load", "load_trainable"]

WEIGHT = "weight."
OPTIMIZER = "optimizer."


@dataclass
class Session:
    """Everything that changes from step to step.

    Attributes:
        step: optimizer steps done.
        tokens: row tokens seen, without padding.
        trained_tokens: labels seen.
        seconds: time spent in steps, over all attempts.
        earlier_joules: energy of earlier attempts up to the checkpoint; None where one was not measured.
        sampled: the last step after which sample answers were shown.
    """

    plan: TrainPlan
    model: Any
    optimizer: torch.optim.Optimizer
    objective: Objective
    parameters: dict[str, torch.nn.Parameter]
    fast_lines: list[str]
    step: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    seconds: float = 0.0
    earlier_joules: float | None = 0.0
    meter: EnergyMeter = field(default_factory=EnergyMeter)
    sampled: int = 0
    validation: list[tuple[int, float]] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)
    """What else the objective measured in the last step, by name."""
    validation_figures: dict[str, float] = field(default_factory=dict)
    """The same of the last validation."""
    rehearsal: Rehearsal | None = None
    """What the longest micro batch took before the first step."""
    trunk: TrunkCache | None = None
    """The frozen layers' output of every row, when it is kept."""
    changes: list[str] = field(default_factory=list)
    """What an attempt had otherwise than the one before it, so that the last bits may differ."""

    def prepare(self, folder: Path | None = None, check: Check = go_on) -> None:
        """What the objective computes of the model as it is before the first step.

        Args:
            folder: keeps it for a resumed attempt.
            check: called between micro batches; what it raises ends it.
        """
        self.objective.prepare(self.model, self.plan, folder, check)

    def train_step(self, check: Check = go_on) -> tuple[float, float, float]:
        """One optimizer step; returns the mean loss, gradient norm and learning rate.

        The loss is a mean over what the objective counts: trained tokens, or pairs.

        Args:
            check: called before each micro batch and each layer; what it raises abandons the step, and
                leaves the weights and the random state as they were before it.

        Raises:
            NotFinite: the loss or a gradient is not finite; the weights are as before the step, or as
                `NotFinite` says of an optimizer in the backward pass.
        """
        step = self.plan.step_at(self.step)
        normaliser = sum(self.objective.count(batch) for batch in step.micro_batches)
        # Before the backward pass: an optimizer that works inside of it needs the rate there.
        rate = learning_rate(self.plan.optimizer, self.step, self.plan.total_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with self._undone_when_abandoned() as random:
            reach("step-begin")
            parts: list[Measured] = []
            for batch in step.micro_batches:
                check()
                reach("step-forward")
                with self._checked(check), served(self.trunk, batch):
                    parts.append(self.objective(self.model, batch, normaliser))
                reach("step-gradients")
            norm = self._clip()
            reach("step-clip")
            loss = total(parts).loss
            if not math.isfinite(loss) or not math.isfinite(norm):
                batches = step.micro_batches
                self._not_finite(
                    Failure("train", self.step, batches, normaliser, random, loss, norm)
                )
        self.optimizer.step()
        reach("step-optimizer")
        self.optimizer.zero_grad(set_to_none=False)
        self.step += 1
        self.tokens += step.row_tokens
        self.trained_tokens += step.trained_tokens
        self.figures = total(parts).means()
        return loss / normaliser, norm, rate

    def _checked(self, check: Check) -> AbstractContextManager[None]:
        # An optimizer inside of the backward pass would leave half of the weights updated.
        return checked(self._layers, check, backward=not self.plan.resources.in_backward)

    @cached_property
    def _layers(self) -> list[Any]:
        from tunesmith.train.fast.trunk import decoder_layers

        return list(decoder_layers(self.model) or ())

    def _clip(self) -> float:
        """Norm of all gradients, before they are scaled down to the largest that is allowed."""
        import torch

        if self.plan.resources.in_backward:
            return float(self.optimizer.norm())  # type: ignore[attr-defined]
        limit = self.plan.optimizer.max_grad_norm
        largest = math.inf if limit is None else limit
        return float(torch.nn.utils.clip_grad_norm_(self.parameters.values(), largest))

    @contextmanager
    def _undone_when_abandoned(self) -> Iterator[dict[str, torch.Tensor]]:
        """Whatever ends the block early leaves no gradients and the random state that it gives."""
        random = randomness.capture()
        whole = False
        try:
            yield random
            whole = True
        finally:
            if not whole:
                self.optimizer.zero_grad(set_to_none=False)
                randomness.restore(random)

    def validation_loss(self, check: Check = go_on) -> float:
        """Mean loss in nats over all validation rows: a trained token, or a pair.

        Args:
            check: called before each micro batch and each layer; what it raises ends the validation.

        Raises:
            NotFinite: it is not finite.
        """
        self.model.eval()
        try:
            parts: list[Measured] = []
            for batch in self.plan.validation_batches():
                check()
                with self._checked(check), served(self.trunk, batch, "validation"):
                    parts.append(self.objective.evaluate(self.model, batch))
                if not math.isfinite(batch_loss := parts[-1].loss):
                    random = randomness.capture()
                    self._not_finite(
                        Failure("validation", self.step, [batch], 1.0, random, batch_loss, 0.0)
                    )
        finally:
            self.model.train()
        found = total(parts)
        self.validation_figures = found.means()
        return found.loss / found.counted

    @property
    def joules(self) -> float | None:
        """Energy of the processor over all attempts; None where the system counts none."""
        now = self.meter.joules()
        return None if now is None or self.earlier_joules is None else self.earlier_joules + now

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """All that the next step depends on: tensors, and facts as JSON values."""
        tensors = {
            f"{WEIGHT}{name}": parameter.detach() for name, parameter in self.parameters.items()
        }
        for name, parameter in self.parameters.items():
            for moment, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"{OPTIMIZER}{moment}.{name}"] = value
        tensors |= randomness.capture()
        facts = {
            "identity": self.identity,
            "cursor": self._cursor(),
            "total_steps": self.plan.total_steps,
            "tokens": self.tokens,
            "trained_tokens": self.trained_tokens,
            "seconds": self.seconds,
            "joules": self.joules,
            "sampled": self.sampled,
            "validation": self.validation,
            "conditions": self.conditions,
            "changes": self.changes,
        }
        return _apart(tensors), facts

    def restore(self, checkpoint: Checkpoint) -> None:
        """Put everything back as it was after the checkpoint's step, bit for bit.

        Raises:
            ConfigError: it is a checkpoint of other data or other settings; the message names them.
        """
        refuse_another(checkpoint.facts.get("identity", {}), self.identity, str(checkpoint.place))
        self.restore_weights(checkpoint.tensors)
        moments: dict[str, dict[str, torch.Tensor]] = {}
        for key, tensor in checkpoint.tensors.items():
            if key.startswith(OPTIMIZER):
                moment, _, name = key.removeprefix(OPTIMIZER).partition(".")
                device = "cpu" if moment == "step" else self.parameters[name].device
                # A copy: what was read is mapped from a file that will be deleted.
                moments.setdefault(name, {})[moment] = tensor.to(device, copy=True)
        for name, found in moments.items():
            self.optimizer.state[self.parameters[name]] = found
        randomness.restore(checkpoint.tensors)
        self.step = checkpoint.step
        self.tokens = checkpoint.facts["tokens"]
        self.trained_tokens = checkpoint.facts["trained_tokens"]
        self.seconds = checkpoint.facts["seconds"]
        self.earlier_joules = checkpoint.facts.get("joules")
        self.sampled = checkpoint.facts.get("sampled", self.step)
        self.validation = [
            (int(step), float(loss)) for step, loss in checkpoint.facts["validation"]
        ]
        earlier = checkpoint.facts.get("conditions", {})
        changes = changes_of(earlier, self.conditions, checkpoint.step)
        self.changes = [*checkpoint.facts.get("changes", []), *changes]

    def restore_weights(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Put the trained weights of a checkpoint back, and nothing else."""
        import torch

        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(tensors[f"{WEIGHT}{name}"])

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What this run is; a checkpoint is only for the run that has the same."""
        return identity(self.plan)

    @cached_property
    def conditions(self) -> dict[str, Any]:
        """What the last bits depend on beside the identity; a run may go on under others, and says so."""
        from tunesmith.train.fast.swap import fast_path_of

        path = fast_path_of(self.model)
        return conditions(self.plan, "train.fast is false" if path is None else path.report.kernels)

    def best(self) -> tuple[int, float] | None:
        """Step and loss of the best validation after at least one step; the earliest of equal ones."""
        trained = [(loss, step) for step, loss in self.validation if step > 0]
        return None if not trained else (min(trained)[1], min(trained)[0])

    def _cursor(self) -> dict[str, int]:
        """Where the next step's rows are: they are a function of these three numbers."""
        if self.step == self.plan.total_steps:
            return {"seed": self.plan.seed, "epoch": -1, "step": -1}
        epoch, first = self.plan.epoch_of(self.step)
        return {"seed": self.plan.seed, "epoch": epoch, "step": self.step - first}

    def _not_finite(self, failure: Failure) -> NoReturn:
        rows = self.plan.rows if failure.split == "train" else self.plan.validation
        members = {int(index) for batch in failure.batches for index in batch.members}
        raise NotFinite(failure, sorted(rows.rows[index].line for index in members))


def build(plan: TrainPlan, folder: Path | None = None, check: Check = go_on) -> Session:
    """`load` and `Session.prepare`."""
    session = load(plan, check)
    session.prepare(folder, check)
    return session


def load(plan: TrainPlan, check: Check = go_on) -> Session:
    """Load the model, mark what is trained, put it on the fast path, and make its optimizer.

    Args:
        plan: what is trained.
        check: called when the model is loaded; what it raises ends the loading.
    """
    from tunesmith.train.optimizers import build_optimizer

    model, lines = load_trainable(ModelPlan.of(plan))
    check()
    parameters = dict(trainable(model))
    return Session(
        plan,
        model,
        build_optimizer(
            plan.optimizer,
            list(parameters.values()),
            in_backward=plan.resources.in_backward,
        ),
        objective_of(plan.objective),
        parameters,
        lines,
    )


def _apart(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Each contiguous and in memory of its own, as safetensors wants them (8-bit moments share tables)."""
    apart: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        whole = tensor.contiguous()
        place = whole.untyped_storage().data_ptr()
        apart[name] = whole.clone() if place in seen else whole
        seen.add(place)
    return apart


@dataclass(frozen=True)
class ModelPlan:
    """What decides the model that is trained: of a `TrainPlan`, or what a failure record kept of one."""

    base: BaseModel
    method: Any
    precision: str
    device: str
    threads: int
    seed: int
    fast: bool

    @classmethod
    def of(cls, plan: TrainPlan) -> ModelPlan:
        """The model's part of a plan."""
        return cls(**{f.name: getattr(plan, f.name) for f in fields(cls)})


def load_trainable(plan: ModelPlan) -> tuple[Any, list[str]]:
    """The model with its trained weights as they are before the first step, and what is fast in it."""
    import torch
    from accelerate import Accelerator

    torch.set_num_threads(plan.threads)
    torch.manual_seed(plan.seed)
    dtype = torch.bfloat16 if plan.precision == "bf16" else torch.float32
    prepare = METHODS.load(plan.method.kind)
    model = prepare(load_base(plan.base, dtype, plan.method), plan.method, plan.seed)
    model = model.to(Accelerator(cpu=plan.device == "cpu").device)
    model.train()
    lines = fast.apply(model).lines() if plan.fast else ["off: train.fast is false"]
    return model, lines
