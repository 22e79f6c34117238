"""Energy that the processor used, where the system counts it.

Linux's powercap counters (Documentation/power/powercap/powercap.rst in its sources): a folder a processor
package, `energy_uj` in microjoules, which starts again at `max_energy_range_uj`. They count the whole
package, other programs included; many systems let only the administrator read them.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["EnergyMeter"]

POWERCAP = Path("/sys/class/powercap")


class EnergyMeter:
    """Counts from its making on; ask it more often than the counters go round (minutes at full load).

    Args:
        root: where the system shows its counters.
    """

    def __init__(self, root: Path = POWERCAP) -> None:
        # Only packages: their cores and memory controllers are counted in them, and they in the platform ("psys").
        self._packages = [
            place
            for place in sorted(root.glob("*-rapl:*"))
            if place.name.count(":") == 1 and _domain(place) != "psys"
        ]
        self._last = self._read()
        self._joules = 0.0

    def joules(self) -> float | None:
        """Energy so far; None where nothing can be read."""
        now = self._read()
        if now is None or self._last is None:
            return None
        for place, before, after in zip(self._packages, self._last, now, strict=True):
            used = after - before
            if used < 0:
                used += _number(place / "max_energy_range_uj") or 0
            self._joules += max(0, used) / 1e6
        self._last = now
        return self._joules

    def _read(self) -> list[int] | None:
        values = [_number(place / "energy_uj") for place in self._packages]
        known = [value for value in values if value is not None]
        return known if known and len(known) == len(values) else None


def _domain(place: Path) -> str:
    try:
        return (place / "name").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
