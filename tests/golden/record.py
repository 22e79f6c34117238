"""Record the golden loss curves again: `python tests/golden/record.py "why" [name ...]`.

Only after a change that is meant to change them; the reason is kept in the file.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from curves import GOLDEN, HERE, curve, read, session_for, versions

from tunesmith.pipeline.stages import FORMATS


def record(name: str, why: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        points = curve(session_for(name, Path(folder)))
    kept = read(name) if (HERE / f"{name}.json").is_file() else None
    same_place = kept is not None and kept["versions"] == versions()
    if same_place and kept["curve"] != points and kept["format"] == FORMATS["train"]:
        sys.exit(f"{name} changed: raise FORMATS['train'] in tunesmith/pipeline/stages.py first")
    golden = {
        "format": FORMATS["train"],
        "command": f"python tests/golden/record.py {why!r} {name}",
        "why": why,
        "versions": versions(),
        "train": dict(GOLDEN[name][1]),
        "curve": points,
    }
    text = json.dumps(golden, indent=1) + "\n"
    (HERE / f"{name}.json").write_text(text, encoding="utf-8")
    print(f"{name}: {len(points) - 1} steps, validation loss {points[-1][0]:.6f}")


def main() -> None:
    why, *names = sys.argv[1:] or sys.exit(__doc__)
    unknown = [name for name in names if name not in GOLDEN]
    if unknown:
        sys.exit(f"no golden run is called {unknown[0]!r}; there are: {', '.join(GOLDEN)}")
    for name in names or GOLDEN:
        record(name, why)


if __name__ == "__main__":
    main()
