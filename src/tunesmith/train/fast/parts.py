"""Which fast parts exist, which were asked for, and which hold for a model."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

__all__ = ["FastPathReport", "FastSwitches"]

MOST_LINES = 3
"""Modules that are named one by one when they run plain for the same reason."""


@dataclass(frozen=True)
class FastSwitches:
    """One switch a part; a part that is off, or does not hold for a model, runs the plain path."""

    lora_linear: bool = True
    """One autograd function for a LoRA linear layer: no weight gradient, input kept once."""
    attention_block: bool = True
    """Norm, q/k/v, rotary, attention per segment, output projection and residual as one function."""
    mlp_block: bool = True
    """Norm, gate and up, SwiGLU, down and residual as one function."""
    head_loss: bool = True
    """Head and cross-entropy on trained positions only, its gradient made in the forward pass."""
    packed_attention: bool = True
    """Rows end to end also where `attention_block` does not hold, by transformers' attention registry."""

    kernels: bool = True
    """Attention, norms, SwiGLU and cross-entropy of these parts by the C++ kernels instead of torch."""

    @classmethod
    def plain(cls) -> FastSwitches:
        """Everything off: the Hugging Face forward pass on padded rows."""
        return cls(**{switch.name: False for switch in fields(cls)})


@dataclass
class FastPathReport:
    """What runs fast and what runs plain, by module name."""

    fast: dict[str, int] = field(default_factory=dict)
    """Part -> number of modules on the fast path."""
    plain: dict[str, str] = field(default_factory=dict)
    """`part: module name` -> why the plain path runs there."""
    kernels: str = ""
    """Why the C++ kernels do not run; empty when they do."""
    packed: bool = False
    """True when rows are laid end to end; False when they are padded to a rectangle."""

    def add(self, part: str, name: str, reason: str | None) -> None:
        """Count a module as fast (`reason` None) or note why it is plain."""
        if reason is None:
            self.fast[part] = self.fast.get(part, 0) + 1
        else:
            self.plain[f"{part}: {name}"] = reason

    def lines(self) -> list[str]:
        """One line a part that is fast, one a module that is not; many with one reason share a line."""
        lines = [f"{part}: fast in {count} modules" for part, count in sorted(self.fast.items())]
        lines.append(f"kernels: off, {self.kernels}" if self.kernels else "kernels: on")
        alike: dict[tuple[str, str], list[str]] = {}
        for name, reason in self.plain.items():
            part, _, module = name.partition(": ")
            alike.setdefault((part, reason), []).append(module)
        for (part, reason), modules in sorted(alike.items()):
            if len(modules) > MOST_LINES:
                modules = [f"{len(modules)} modules, {modules[0]} to {modules[-1]}"]
            lines += [f"{part}: {module}: plain, {reason}" for module in modules]
        return lines
