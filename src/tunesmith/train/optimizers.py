"""Optimizers: AdamW, with 8-bit moments, for bf16 weights, and inside the backward pass."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from tunesmith.errors import ConfigError, EnvironmentProblem
from tunesmith.registry import Table

if TYPE_CHECKING:
    from tunesmith.config import OptimizerConfig

__all__ = ["OPTIMIZERS", "build_optimizer"]

Groups = list[dict[str, Any]]

OPTIMIZERS = Table(
    "optimizer",
    {
        "adamw": "tunesmith.train.optimizers:adamw_of",
        "adamw_8bit": "tunesmith.train.optimizers:adamw_8bit_of",
    },
    extra="train",
)


def build_optimizer(
    config: OptimizerConfig, parameters: Sequence[nn.Parameter], *, in_backward: bool
) -> Any:
    """The optimizer for these weights; weight decay is on matrices only.

    Raises:
        ConfigError: 8-bit moments are asked for weights that are not float32.
        EnvironmentProblem: a package is missing.
    """
    make = OPTIMIZERS.load(config.kind)
    if in_backward:
        return BackwardOptimizer(parameters, lambda one: make(_groups(config, [one]), config))
    return make(_groups(config, parameters), config)


def _groups(config: OptimizerConfig, parameters: Sequence[nn.Parameter]) -> Groups:
    groups: Groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def adamw_of(groups: Groups, config: OptimizerConfig) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019); for bf16 weights the one that rounds stochastically."""
    settings: dict[str, Any] = {"lr": config.learning_rate, "betas": (config.beta1, config.beta2)}
    if _is_half(groups):
        return RoundingAdamW(groups, **settings)
    # One pass over the memory; elsewhere than on a CPU it would want its step counters on the device.
    fused = all(p.device.type == "cpu" for group in groups for p in group["params"])
    return torch.optim.AdamW(groups, fused=fused, **settings)


def adamw_8bit_of(groups: Groups, config: OptimizerConfig) -> AdamW8bit:
    """AdamW with block-wise 8-bit moments (Dettmers et al. 2022), by bitsandbytes.

    Raises:
        ConfigError: the weights are not float32.
        EnvironmentProblem: bitsandbytes is not installed.
    """
    if _is_half(groups):
        raise ConfigError(
            "train.optimizer.kind = adamw_8bit with weights that are trained in bf16",
            why="its updates are rounded to the nearest bf16 number, so the small ones would be lost",
            fix="set train.precision to fp32, or train.optimizer.kind to adamw",
        )
    return AdamW8bit(groups, config.learning_rate, (config.beta1, config.beta2))


def _is_half(groups: Groups) -> bool:
    return any(p.dtype in (torch.bfloat16, torch.float16) for g in groups for p in g["params"])


class RoundingAdamW(torch.optim.Optimizer):
    """AdamW for bf16 weights without fp32 copies of them: fp32 moments, stochastic rounding.

    A bf16 number has 8 bits: an update below 1/512 of its weight would be lost in every step. Rounded
    up or down at random, by how near each neighbour is, it is kept in the mean (Zamirai et al. 2020,
    arXiv 2010.06192). The draws come from torch's CPU generator, so a resumed run draws the same.
    """

    def __init__(self, groups: Groups, lr: float, betas: tuple[float, float]) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": 1e-8, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update of every weight that has a gradient."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, group)

    def _update(self, weight: Tensor, group: dict[str, Any]) -> None:
        state = self.state[weight]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"] = torch.zeros_like(weight, dtype=torch.float32)
            state["exp_avg_sq"] = torch.zeros_like(weight, dtype=torch.float32)
        assert weight.grad is not None
        exact = weight.detach().float()
        adamw(
            [exact],
            [weight.grad.float()],
            [state["exp_avg"]],
            [state["exp_avg_sq"]],
            [],
            [state["step"]],
            foreach=False,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
        weight.copy_(stochastically_rounded(exact) if weight.dtype == torch.bfloat16 else exact)


def stochastically_rounded(exact: Tensor) -> Tensor:
    """A float32 tensor as bf16: of the two neighbours, each as often as the number is near it.

    Overwrites `exact`. bf16 is the upper half of a float32: a random lower half is added, and cut off.
    """
    noise = torch.randint(0, 1 << 16, exact.shape, dtype=torch.int32)
    bits = exact.view(torch.int32)
    bits.add_(noise.to(bits.device)).bitwise_and_(-(1 << 16))
    return exact.to(torch.bfloat16)


class BackwardOptimizer:
    """An optimizer a weight, run as soon as its gradient is whole, which is then dropped.

    So no more than one gradient is held at a time (Lv et al. 2023, arXiv 2306.09782). It can neither
    sum gradients over micro batches nor clip their global norm. After the first gradient that is not
    finite nothing is updated any more; weights nearer to the output were, by then.
    """

    def __init__(
        self, parameters: Sequence[nn.Parameter], make: Callable[[nn.Parameter], Any]
    ) -> None:
        self.state: dict[Tensor, dict[str, Any]] = defaultdict(dict)
        self.optimizers = [make(parameter) for parameter in parameters]
        self._norms: dict[int, Tensor] = {}
        self._is_paused = False
        self._is_keeping = False
        for place, parameter in enumerate(parameters):
            self.optimizers[place].state = self.state
            hook = self._hook(place)
            parameter.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]

    @property
    def param_groups(self) -> Groups:
        """All groups of all weights; a rate set in them counts from the next backward pass on."""
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def step(self) -> None:
        """Nothing: every weight was updated in the backward pass."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the norms of the last backward pass; gradients are gone already."""
        self._norms.clear()

    def norm(self) -> float:
        """Global norm of the last backward pass's gradients."""
        norms = [self._norms[place] for place in sorted(self._norms)]
        return float(torch.linalg.vector_norm(torch.stack(norms))) if norms else 0.0

    @contextmanager
    def paused(self) -> Iterator[None]:
        """While the block runs, gradients are dropped and change nothing."""
        self._is_paused = True
        try:
            yield
        finally:
            self._is_paused = False

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """While the block runs, gradients stay, and change nothing: memory for all of them is needed."""
        self._is_keeping = True
        try:
            yield
        finally:
            self._is_keeping = False

    def _hook(self, place: int) -> Callable[[Tensor], None]:
        def use(weight: Tensor) -> None:
            assert weight.grad is not None
            if self._is_keeping:
                return
            if not self._is_paused:
                broken = any(not math.isfinite(float(n)) for n in self._norms.values())
                self._norms[place] = torch.linalg.vector_norm(weight.grad).float()
                if not broken and math.isfinite(float(self._norms[place])):
                    self.optimizers[place].step()
            weight.grad = None

        return use


def _bitsandbytes() -> Any:
    try:
        return import_module("bitsandbytes")
    except ModuleNotFoundError as error:
        raise EnvironmentProblem(
            "train.optimizer.kind = adamw_8bit needs bitsandbytes, which is not installed",
            fix="pip install 'tunesmith[8bit]', or set train.optimizer.kind to adamw",
        ) from error


class AdamW8bit:
    """bitsandbytes' AdamW8bit, its step count as a tensor so that a checkpoint can hold it.

    Weights of fewer than 4,096 entries keep 32-bit moments, as its authors advise.
    """

    def __init__(self, groups: Groups, lr: float, betas: tuple[float, float]) -> None:
        self.inner = _bitsandbytes().optim.AdamW8bit(groups, lr=lr, betas=betas)

    @property
    def param_groups(self) -> Groups:
        """The groups, whose rate may be set."""
        found: Groups = self.inner.param_groups
        return found

    @property
    def state(self) -> Any:
        """Moments of each weight."""
        return self.inner.state

    @state.setter
    def state(self, state: Any) -> None:
        self.inner.state = state

    def step(self) -> None:
        """One update of every weight that has a gradient."""
        for state in self.inner.state.values():
            if isinstance(state.get("step"), Tensor):
                state["step"] = int(state["step"])
        self.inner.step()
        for state in self.inner.state.values():
            if "step" in state:
                state["step"] = torch.tensor(float(state["step"]))

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients."""
        self.inner.zero_grad(set_to_none=set_to_none)
