"""Cost of orchestration on this checkout's own graph: DVC's questions, and a flow with nothing to do.

Prints seconds and, for Prefect, its share of a whole call. Wants a quiet machine and an up-to-date demo (`make demo`);
says so when it is not.
"""

import os
import subprocess
import sys
import time

from infra.settings import Settings
from tasks import dvc


def seconds(command: list[str], root: str, env: dict[str, str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, cwd=root, env=env, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> int:
    root = Settings().root.absolute()
    env = dvc.environment()
    seen = dvc.inspect(root)
    graph = dvc.select(seen.graph, root, "demo")
    stale = sorted(name for name, why in seen.stale.items() if name in graph and dvc.ALWAYS_CHANGED not in why)
    print(f"stages of demo: {len(graph)}, load of the machine: {os.getloadavg()[0]:.1f}")
    if stale:
        print(f"not up to date, run `make demo` first: {', '.join(stale)}")
        return 0
    question = min(seconds(dvc.command("status"), str(root), env) for _ in range(3))
    nothing = min(seconds(dvc.command("repro", "adafocus_eval@demo"), str(root), env) for _ in range(2))
    listing = min(seconds(dvc.command("repro", "-s", "manifest@demo"), str(root), env) for _ in range(2))
    flow = [sys.executable, "-m", "flows.reproduce", "demo"]
    stages = min(seconds([*flow, "--no-finish"], str(root), env) for _ in range(2))
    whole = seconds(flow, str(root), env)
    print(f"dvc status                          {question:6.2f} s")
    print(f"dvc repro, nothing to do            {nothing:6.2f} s   (limit 5 s: {nothing / 5:.2f} of it)")
    print(f"flow, nothing to do, no registry    {stages:6.2f} s")
    print(f"flow, nothing to do                 {whole:6.2f} s   (limit 20 s: {whole / 20:.2f} of it)")
    share = stages - question - listing
    print(f"Prefect's share (start, tasks, end) {share:6.2f} s   (limit 20 s: {share / 20:.2f} of it)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
