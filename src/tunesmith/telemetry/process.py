"""What the system says of this process."""

from __future__ import annotations

import sys
from pathlib import Path

__all__ = ["peak_rss_bytes"]


def peak_rss_bytes(pid: int | None = None) -> int:
    """Largest resident memory that a process has had: this one, or another of this user.

    On systems without such a figure for another process it is what that one has now.
    """
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process(pid).memory_info().peak_wset)
    if sys.platform == "linux":
        # Linux's ru_maxrss is at least what the parent held when it started this program (getrusage(2), execve(2)).
        for line in Path(f"/proc/{pid or 'self'}/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    if pid is not None:
        import psutil

        return int(psutil.Process(pid).memory_info().rss)
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024
