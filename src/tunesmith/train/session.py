"""The moving parts of a run: model, optimizer, counters; built, saved and restored as one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tunesmith.errors import TrainingError
from tunesmith.models.load import load_model
from tunesmith.train import fast
from tunesmith.train.checkpoint import Checkpoint
from tunesmith.train.methods import METHODS, trainable
from tunesmith.train.objectives import OBJECTIVES, Objective
from tunesmith.train.plan import TrainPlan
from tunesmith.train.schedule import learning_rate

if TYPE_CHECKING:
    import torch

__all__ = ["Session", "build"]

MOMENTS = ("exp_avg", "exp_avg_sq", "step")


@dataclass
class Session:
    """Everything that changes from step to step.

    Attributes:
        step: optimizer steps done.
        tokens: row tokens seen, without padding.
        trained_tokens: labels seen.
        seconds: time spent in steps, over all attempts.
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
    validation: list[tuple[int, float]] = field(default_factory=list)

    def train_step(self) -> tuple[float, float, float]:
        """One optimizer step; returns loss per trained token, gradient norm and learning rate.

        Raises:
            TrainingError: the loss or a gradient is not finite; the weights are as before the step.
        """
        import torch

        step = self.plan.step_at(self.step)
        normaliser = step.trained_tokens
        loss = sum(self.objective(self.model, batch, normaliser)[0] for batch in step.micro_batches)
        norm = float(
            torch.nn.utils.clip_grad_norm_(
                self.parameters.values(), self.plan.optimizer.max_grad_norm
            )
        )
        self._check_finite(loss, norm)
        rate = learning_rate(self.plan.optimizer, self.step, self.plan.total_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=False)
        self.step += 1
        self.tokens += step.row_tokens
        self.trained_tokens += normaliser
        return loss / normaliser, norm, rate

    def validation_loss(self) -> float:
        """Mean cross-entropy in nats over all trained tokens of the validation rows."""
        self.model.eval()
        loss, tokens = 0.0, 0
        for batch in self.plan.validation_batches():
            batch_loss, batch_tokens = fast.evaluate_microbatch(self.model, batch)
            loss += batch_loss
            tokens += batch_tokens
        self.model.train()
        return loss / tokens

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """All that the next step depends on: tensors and counters."""
        import torch

        tensors = {
            f"weight.{name}": parameter.detach() for name, parameter in self.parameters.items()
        }
        for name, parameter in self.parameters.items():
            moments = self.optimizer.state.get(parameter, {})
            tensors |= {f"{m}.{name}": moments[m] for m in MOMENTS if m in moments}
        tensors["random_state"] = torch.get_rng_state()
        facts = {
            "tokens": self.tokens,
            "trained_tokens": self.trained_tokens,
            "seconds": self.seconds,
            "validation": self.validation,
        }
        return {name: tensor.contiguous() for name, tensor in tensors.items()}, facts

    def restore(self, checkpoint: Checkpoint) -> None:
        """Put everything back as it was after the checkpoint's step, bit for bit."""
        import torch

        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(checkpoint.tensors[f"weight.{name}"])
                self.optimizer.state[parameter] = {
                    m: checkpoint.tensors[f"{m}.{name}"].to(
                        parameter.device if m != "step" else "cpu"
                    )
                    for m in MOMENTS
                }
        torch.set_rng_state(checkpoint.tensors["random_state"])
        self.step = checkpoint.step
        self.tokens = checkpoint.facts["tokens"]
        self.trained_tokens = checkpoint.facts["trained_tokens"]
        self.seconds = checkpoint.facts["seconds"]
        self.validation = [
            (int(step), float(loss)) for step, loss in checkpoint.facts["validation"]
        ]

    def _check_finite(self, loss: float, norm: float) -> None:
        import math

        if math.isfinite(loss) and math.isfinite(norm):
            return
        lines = sorted(
            self.plan.rows.rows[int(index)].line
            for batch in self.plan.step_at(self.step).micro_batches
            for index in batch.row_indices
        )
        raise TrainingError(
            f"the loss is {loss} and the gradient norm {norm} at step {self.step + 1}",
            why=f"the step held these lines of train.jsonl: {', '.join(map(str, lines))}",
            fix="lower train.optimizer.learning_rate, or set train.precision to fp32",
        )


def build(plan: TrainPlan) -> Session:
    """Load the model, mark what is trained, put it on the fast path, and make its optimizer."""
    import torch
    from accelerate import Accelerator

    torch.set_num_threads(plan.threads)
    torch.manual_seed(plan.seed)
    dtype = torch.bfloat16 if plan.precision == "bf16" else torch.float32
    prepare = METHODS.load(plan.method.kind)
    model = prepare(load_model(plan.base, dtype), plan.method, plan.seed)
    model = model.to(Accelerator(cpu=plan.device == "cpu").device)
    model.train()
    lines = fast.apply(model).lines() if plan.fast else ["off: train.fast is false"]
    parameters = dict(trainable(model))
    return Session(
        plan,
        model,
        _adamw(plan, parameters),
        OBJECTIVES.load(plan.objective),
        parameters,
        lines,
    )


def _adamw(plan: TrainPlan, parameters: dict[str, torch.nn.Parameter]) -> torch.optim.Optimizer:
    import torch

    config = plan.optimizer
    matrices = [p for p in parameters.values() if p.ndim >= 2]
    vectors = [p for p in parameters.values() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
    )
