"""Does the learned policy beat random and centre patches at equal cost? Several seeds, paired.

    python -m benchmarks.adafocus_claims --seeds 0 1 2 3 4 --params params/demo.yaml --shards data/shards/demo

Runs stages 0 to III and the evaluation of AdaFocus V1 for each seed (the seed changes weights, order and
draws; the data stay), in processes of their own, and prints one row per seed, the paired differences and the
share of patches that contain the object (from truth.csv, if given). Every arm starts from the same weights
and gets the same batches and the same number of stage III steps.
"""

import argparse
import csv
import json
import multiprocessing
import statistics
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from data_specs.schema import read_index
from training.core.config import DataConfig, apply_overrides, validate
from training.core.data import open_loader, resolve_decoder
from training.core.evaluate import Predictions, evaluate
from training.core.ray_runner import FitJob, source_digest, train_worker
from training.core.sampling import frame_positions
from training.core.stage import StageInputs, StageRef
from training.registry import all_stages

ARMS = ("random", "center", "gaussian", "fullframe", "glance")


def run_chain(params: dict[str, Any], shards: Path, out: Path, seed: int, cpus: int) -> dict[str, Any]:
    """Run all AdaFocus stages in this process; return metrics, predictions path and seconds per stage."""
    classes = read_index(shards).classes
    seconds = {}
    for stage in all_stages().values():
        if not stage.name.startswith("adafocus_"):
            continue
        for ref in stage.instances("claims", Path.cwd()):
            values = dict(params[stage.name])
            values |= {field: params[section] for field, section in stage.shared.items()}
            values |= dict(zip(stage.matrix, ref.items, strict=True))
            overrides = [f"data.decoder={resolve_decoder('auto')}"]
            overrides += [f"fit.seed={seed}"] if stage.kind == "fit" else []
            values = apply_overrides(values, overrides)
            upstream = {name: out / name / "result" / "model" for name in stage.upstream}
            started = time.perf_counter()
            if stage.kind == "fit":
                train_worker(asdict(_job(ref, values, list(classes), shards, upstream, out, cpus)))
                note = out / ref.slug / "fatal.txt"
                if note.exists():
                    raise RuntimeError(note.read_text())
            else:
                config = validate(stage.config, values, stage.name)
                system = stage.build(StageInputs(config=config, classes=classes, upstream=upstream))
                loader = open_loader(shards, config.data, split="test", train=False, seed=0)
                device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
                result = evaluate(system, loader, split="test", device=device)
                loader.close()
                result.predictions.save(out / "predictions.npz")
                metrics = result.metrics
            seconds[ref.slug] = time.perf_counter() - started
    return {"seed": seed, "metrics": metrics, "seconds": seconds, "predictions": str(out / "predictions.npz")}


def _job(
    ref: StageRef,
    values: dict[str, Any],
    classes: list[str],
    shards: Path,
    upstream: dict[str, Path],
    out: Path,
    cpus: int,
) -> FitJob:
    work = out / ref.slug
    work.mkdir(parents=True, exist_ok=True)
    return FitJob(
        stage=ref.stage,
        dataset=ref.dataset,
        name=str(ref),
        config=values,
        classes=classes,
        shards=str(shards.absolute()),
        upstream={name: str(path.absolute()) for name, path in upstream.items()},
        work=str(work.absolute()),
        tracking=None,
        source_digest=source_digest(),
        cpus=cpus,
        root=str(Path.cwd()),
        allow_decoder_change=False,
    )


def containment(path: Path, manifest: Path, truth: Path, data: DataConfig) -> float:
    """Return the share of the learned patches that contain the whole object."""
    with manifest.open(newline="") as file:
        source = {row["key"]: row["path"] for row in csv.DictReader(file)}
    corners: dict[str, list[tuple[int, int]]] = {}
    with truth.open(newline="") as file:
        for row in csv.DictReader(file):
            corners.setdefault(row["path"], []).append((int(row["y"]), int(row["x"])))
            side = int(row["size"])
    predictions = Predictions.load(path)
    patch = int(predictions.extras["patch"][0])
    hits = []
    for key, origins in zip(predictions.key, predictions.extras["origins"].astype(int), strict=True):
        place = np.asarray(corners[source[str(key)]])
        chosen = place[frame_positions(len(place), data, train=False, seed=0)]
        hits.append(((chosen >= origins) & (chosen + side <= origins + patch)).all(-1).mean())
    return float(np.mean(hits))


def _one(arguments: tuple[dict[str, Any], str, str, int, int]) -> dict[str, Any]:
    params, shards, out, seed, cpus = arguments
    torch.set_num_threads(cpus)
    return run_chain(params, Path(shards), Path(out) / f"seed-{seed}", seed, cpus)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--params", type=Path, default=Path("params/demo.yaml"))
    parser.add_argument("--shards", type=Path, default=Path("data/shards/demo"))
    parser.add_argument("--manifest", type=Path, default=Path("data/manifests/demo.csv"))
    parser.add_argument("--truth", type=Path)
    parser.add_argument("--out", type=Path, default=Path(".work/claims"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    options = parser.parse_args()
    params = apply_overrides(yaml.safe_load(options.params.read_text()), options.overrides)
    cpus = max(1, (torch.get_num_threads()) // options.processes)
    jobs = [(params, str(options.shards), str(options.out), seed, cpus) for seed in options.seeds]
    with multiprocessing.get_context("spawn").Pool(options.processes, maxtasksperchild=1) as pool:
        rows = []
        for row in pool.imap(_one, jobs):
            rows.append(row)
            print(f"seed {row['seed']} done in {sum(row['seconds'].values()):.0f} s", flush=True)
    report(rows, options, validate(DataConfig, params["adafocus_data"], "adafocus_data"))


def report(rows: list[dict[str, Any]], options: argparse.Namespace, data: DataConfig) -> None:
    """Print the table and write it beside the results as JSON."""
    from scipy import stats

    arms = [arm for arm in ARMS if f"test/top1_{arm}" in rows[0]["metrics"]]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(f"\n{device}; {int(rows[0]['metrics']['test/num_evaluated'])} test videos; top-1 per arm")
    print("| seed | learned | " + " | ".join(arms) + " | patches on the object |")
    print("|" + "---|" * (len(arms) + 3))
    for row in rows:
        metrics = row["metrics"]
        hit = ""
        if options.truth:
            hit = f"{containment(Path(row['predictions']), options.manifest, options.truth, data):.3f}"
        cells = [f"{metrics['test/top1']:.3f}", *(f"{metrics[f'test/top1_{arm}']:.3f}" for arm in arms), hit]
        print(f"| {row['seed']} | " + " | ".join(cells) + " |")
    costs = [rows[0]["metrics"]["test/gmac_per_video"]]
    costs += [rows[0]["metrics"][f"test/gmac_per_video_{arm}"] for arm in arms]
    print("| GMAC per video | " + " | ".join(f"{cost:.4f}" for cost in costs) + " | |")
    if len(rows) > 1:
        for arm in arms:
            gaps = [row["metrics"]["test/top1"] - row["metrics"][f"test/top1_{arm}"] for row in rows]
            error = statistics.stdev(gaps) / len(gaps) ** 0.5
            p = stats.ttest_1samp(gaps, 0).pvalue
            won = sum(gap > 0 for gap in gaps)
            mean = statistics.mean(gaps)
            print(f"learned - {arm}: {mean:+.3f} ± {error:.3f} (s.e.), {won}/{len(gaps)} seeds, p = {p:.2g}")
    print("seconds per stage, first seed: " + ", ".join(f"{k} {v:.0f}" for k, v in rows[0]["seconds"].items()))
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "rows.json").write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
