"""Does LSTS hold what it claims? Methods against one another on packed videos, paired by seed.

    python -m benchmarks.lsts_claims <shards> --methods lsts,fixed,hold --seeds 0,1,2 [--set KEY=VALUE …] [--out FILE]

Methods are those of `lsts_methods` in the params file. Per seed there is one single-frame detector, from which every
method starts; the arm `single` is that detector on every frame.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import yaml

from benchmarks.lsts_chain import Chain

SHOWN = ("map50", "map50_degraded", "map50_clean", "map50_slow", "map50_fast")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=Path)
    parser.add_argument("--params", type=Path, default=Path("params/templates/lsts.yaml"))
    parser.add_argument("--methods", default="lsts")
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--cpus", type=int, default=8, help="threads of torch in training")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--work", type=Path, help="keep what was trained there; what is there is not trained again")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    methods = options.methods.split(",")
    rows: list[dict[str, float | str]] = []
    with tempfile.TemporaryDirectory() as temporary:
        params = yaml.safe_load(options.params.read_text())
        overrides = ["data.decoder=auto", *options.set]
        work = options.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        chain = Chain(options.shards, params, work, device, options.cpus, overrides)
        for seed in map(int, options.seeds.split(",")):
            for method in methods:
                started = time.perf_counter()
                metrics = chain.evaluation(method, seed).metrics
                figures = {name.removeprefix("test/"): value for name, value in metrics.items()}
                rows.append({"seed": seed, "method": method, "seconds": time.perf_counter() - started, **figures})
                if options.out:
                    options.out.write_text(json.dumps(rows, indent=1))
    table(rows, methods)


def table(rows: list[dict[str, float | str]], methods: list[str]) -> None:
    """Print means over seeds, of each method and of the single-frame detector that it started from."""
    names = [name for name in (*SHOWN, "gmac_per_frame", "offsets_mean_x", "offsets_mean_y") if name in rows[0]]
    print(f"{'method':<22}" + "".join(f"{name.removeprefix('map50_'):>16}" for name in names))
    for method in methods:
        own = [row for row in rows if row["method"] == method]
        for suffix, shown in (("", method), ("_single", "  single")):
            values = [[float(row.get(name + suffix, np.nan)) for row in own] for name in names]
            cells = (f"{np.mean(v):>10.4f} ±{np.std(v):.3f}" for v in values)
            print(f"{shown:<22}" + "".join(cells), flush=True)


if __name__ == "__main__":
    main()
