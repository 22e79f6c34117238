"""Which fast parts exist, which were asked for, and which hold for a model."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["FastPathReport", "FastSwitches"]


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
    keep_attention: bool = False
    """Keep what is inside attention for the backward pass: a little faster, a quarter more memory."""

    @classmethod
    def plain(cls) -> FastSwitches:
        """Everything off: the Hugging Face forward pass on padded rows."""
        return cls(lora_linear=False, attention_block=False, mlp_block=False, head_loss=False)


@dataclass
class FastPathReport:
    """What runs fast and what runs plain, by module name."""

    fast: dict[str, int] = field(default_factory=dict)
    """Part -> number of modules on the fast path."""
    plain: dict[str, str] = field(default_factory=dict)
    """`part: module name` -> why the plain path runs there."""

    @property
    def packed(self) -> bool:
        """True when rows are laid end to end; False when they are padded to a rectangle."""
        return self.fast.get("attention_block", 0) > 0

    def add(self, part: str, name: str, reason: str | None) -> None:
        """Count a module as fast (`reason` None) or note why it is plain."""
        if reason is None:
            self.fast[part] = self.fast.get(part, 0) + 1
        else:
            self.plain[f"{part}: {name}"] = reason

    def lines(self) -> list[str]:
        """One line a part that is fast, one a module that is not."""
        fast = [f"{part}: fast in {count} modules" for part, count in sorted(self.fast.items())]
        return fast + [f"{name}: plain, {reason}" for name, reason in sorted(self.plain.items())]
