"""A process that has everything imported and forks a run for each request, and kills it where it is told.

Started by `test_kill.py`. A request and a reply are one JSON line each. A request names the recipe's
values and, if the run is to die, a failpoint or the CPU seconds after which it is killed.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
from typing import Any

import psutil


def run_recipe(values: dict[str, Any]) -> int:
    """The train stage as `tunesmith run --until train` does it; returns its exit code."""
    from tunesmith import pipeline
    from tunesmith.config import recipe_from
    from tunesmith.errors import TunesmithError

    try:
        pipeline.run(recipe_from(values), until="train")
    except TunesmithError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def child(request: dict[str, Any]) -> int:
    from tunesmith.store import failpoints

    failpoints.arm(request.get("failpoint", ""))
    with open(request["said"], "a") as said:
        os.dup2(said.fileno(), 2)
    return run_recipe(request["values"])


def kill_at(pid: int, cpu_seconds: float) -> None:
    """SIGKILL once the process has used so much CPU; nothing when it ends before."""
    process = psutil.Process(pid)
    while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        times = process.cpu_times()
        if times.user + times.system >= cpu_seconds:
            os.kill(pid, signal.SIGKILL)
            return
        time.sleep(0.002)


def serve(request: dict[str, Any]) -> dict[str, Any]:
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            code = child(request)
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)
    if "cpu_seconds" in request:
        kill_at(pid, request["cpu_seconds"])
    _, status, used = os.wait4(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    return {"code": code, "cpu_seconds": used.ru_utime + used.ru_stime}


def main() -> None:
    # A whole run here first: what it imports and compiles is then there in every fork.
    first = json.loads(sys.stdin.readline())
    code = run_recipe(first["values"])
    print(json.dumps({"code": code}), flush=True)
    for line in sys.stdin:
        print(json.dumps(serve(json.loads(line))), flush=True)
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    print(sum(one.ru_utime + one.ru_stime for one in both), file=sys.stderr)


if __name__ == "__main__":
    main()
