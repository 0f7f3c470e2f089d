"""Facts of a registered model, and the model card made of nothing but them."""

import importlib.metadata
import json
import platform
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import ConfigDict

from data_specs.schema import Strict
from infra.settings import Settings
from training.core.config import parse_yaml
from training.core.gate import GateReport, RoundTrip, wilson_interval

if TYPE_CHECKING:
    from training.core.registration import Evaluated
    from training.core.tracking import RunRecord


class Arm(Strict):
    """A comparison model of the same evaluation (another policy, another net)."""

    top1: float | None
    gmac: float | None


class BoxArm(Strict):
    """A comparison detector of the same evaluation."""

    map50: float
    difference: float
    """To the model, of mAP50."""
    interval: tuple[float, float]
    """Of the difference, 95 %, bootstrap over videos."""


class BoxFacts(Strict):
    """What a model that finds boxes has instead of top-1."""

    map50: float
    interval: tuple[float, float]
    """95 %, bootstrap over videos."""
    frames: int
    """Labelled, evaluated."""
    objects: int
    """Boxes in these frames."""
    arms: dict[str, BoxArm]


class Facts(Strict):
    """What is known when a model is registered; stored beside it as `evaluation/facts.json`."""

    # A failed round trip has an infinite difference, which plain JSON cannot say.
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")

    name: str
    subject: str
    """Stage instance that made the model."""
    evaluation: str
    dataset: str
    split: str
    model_digest: str
    model_bytes: int
    data_digest: str
    eval_data_digest: str
    spec_digest: str
    encoder: str
    representation: str
    classes: int
    evaluated: int
    """Clips."""
    in_shards: int
    """Clips of the split in the shards."""
    listed: int
    """Videos of the split that the sources list, before rejects."""
    rejects: dict[str, int]
    """Reason → number, all splits."""
    dvc: dict[str, str]
    """Path → md5, from dvc.lock."""
    metrics: dict[str, float]
    top1: float | None
    interval: tuple[float, float] | None
    """Wilson, 95 %."""
    majority: float | None
    """Share of the most frequent class of the evaluated clips."""
    gmac: float | None
    """Per video; per frame of models that find boxes."""
    params: float | None
    arms: dict[str, Arm]
    hardware: str
    versions: dict[str, str]
    git_commit: str
    git_dirty: str
    flow_run_id: str
    training_run_id: str
    evaluation_run_id: str
    registered: str
    """UTC."""
    round_trip: RoundTrip | None = None
    boxes: BoxFacts | None = None
    """Of models that find boxes."""

    @property
    def measure(self) -> str:
        """Name of the figure that counts."""
        return "top-1" if self.boxes is None else "mAP50"

    @property
    def score(self) -> float | None:
        """The figure that counts."""
        return self.top1 if self.boxes is None else self.boxes.map50

    @property
    def score_interval(self) -> tuple[float, float] | None:
        """Its interval, 95 %."""
        return self.interval if self.boxes is None else self.boxes.interval

    @property
    def cost_unit(self) -> str:
        """What the cost is of."""
        return "video" if self.boxes is None else "frame"

    def as_json(self) -> str:
        """Return what is stored; facts of other models do not mention boxes."""
        return self.model_dump_json(indent=1, exclude=None if self.boxes else {"boxes"}) + "\n"


def cost_of(metrics: dict[str, float], split: str, arm: str = "") -> float | None:
    """Return GMAC per video from the metrics of an evaluation; per view without it, and of detection per frame."""
    suffix = f"_{arm}" if arm else ""
    units = ("frame", "video", "view") if f"{split}/map50" in metrics else ("video", "view")
    for per in units:
        value = metrics.get(f"{split}/gmac_per_{per}{suffix}")
        if value is not None:
            return value
    return None


def dvc_lock(root: Path) -> dict[str, Any]:
    """Return the stages of `dvc.lock`; empty where there is none."""
    path = root / "dvc.lock"
    if not path.exists():
        return {}
    stages = (parse_yaml(path.read_text()) or {}).get("stages", {})
    return dict(stages) if isinstance(stages, dict) else {}


def dvc_hashes(root: Path, stage: str) -> dict[str, str]:
    """Return path → md5 of what a stage of `dvc.lock` read and made."""
    entry = dvc_lock(root).get(stage, {})
    return {item["path"]: item["md5"] for part in ("deps", "outs") for item in entry.get(part, []) if item.get("md5")}


def collect_facts(
    settings: Settings, evaluated: "Evaluated", training: "RunRecord | None", evaluation: "RunRecord | None"
) -> Facts:
    """Gather facts from files and runs; what nobody recorded stays empty."""
    split, metrics, index = evaluated.stage.split, evaluated.metrics, evaluated.index
    with np.load(evaluated.paths.predictions) as arrays:
        label, scores = arrays["label"], arrays["scores"]
        stored = {name: arrays[name] for name in arrays if name.startswith("boxes/")}
        arms = sorted(name.removeprefix("arm/") for name in arrays if name.startswith("arm/"))
    single = label.ndim == 1 and len(label) > 0
    correct = int((scores.argmax(axis=1) == label).sum()) if single else 0
    hashes = {
        **dvc_hashes(settings.root, f"shards@{evaluated.ref.dataset}"),
        **dvc_hashes(settings.root, str(evaluated.subject)),
        **dvc_hashes(settings.root, str(evaluated.ref)),
    }
    tags = (training or evaluation).tags if (training or evaluation) else {}  # type: ignore[union-attr]
    return Facts(
        name=evaluated.name,
        subject=str(evaluated.subject),
        evaluation=str(evaluated.ref),
        dataset=evaluated.ref.dataset,
        split=split,
        model_digest=evaluated.model_digest,
        model_bytes=sum(path.stat().st_size for path in evaluated.model.iterdir()),
        data_digest=index.data_digest(),
        eval_data_digest=index.data_digest(split),
        spec_digest=index.spec_digest,
        encoder=f"{index.encoder.name} {index.encoder.version}",
        representation=index.representation,
        classes=len(index.classes),
        evaluated=len(label),
        in_shards=sum(shard.samples for shard in index.of_split(split)),
        listed=index.listed.get(split, 0),
        rejects={reason: count for reason, count in sorted(index.rejects.items()) if count},
        dvc={path: md5 for path, md5 in hashes.items() if not path.endswith(".py")},
        metrics=metrics,
        top1=correct / len(label) if single else None,
        interval=wilson_interval(correct, len(label)) if single else None,
        majority=float(np.bincount(label).max() / len(label)) if single else None,
        gmac=cost_of(metrics, split),
        params=metrics.get(f"{split}/params"),
        arms={name: Arm(top1=metrics.get(f"{split}/top1_{name}"), gmac=cost_of(metrics, split, name)) for name in arms},
        hardware=tags.get("hardware", ""),
        versions={
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in ("torch", "mlflow", "numpy", "av")},
        },
        git_commit=tags.get("git_commit", ""),
        git_dirty=tags.get("git_dirty", ""),
        flow_run_id=tags.get("flow_run_id", ""),
        training_run_id=training.run_id if training else "",
        evaluation_run_id=evaluation.run_id if evaluation else "",
        boxes=_box_facts(stored, len(index.classes)) if stored else None,
        registered=time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
    )


def _box_facts(arrays: dict[str, Any], classes: int) -> BoxFacts:
    from training.core.box_gate import Measured
    from training.core.box_metrics import MAIN
    from training.core.box_resampling import percentiles
    from training.core.box_results import BoxResults

    boxes = BoxResults.of(arrays)
    assert boxes is not None  # the caller found some
    measured = {name: Measured(boxes, classes, name) for name in sorted(boxes.found)}
    own = measured.pop(MAIN)
    return BoxFacts(
        map50=own.mean,
        interval=own.interval(),
        frames=len(boxes.truth.labelled_M2),
        objects=len(boxes.truth.video_N),
        arms={
            name: BoxArm(map50=arm.mean, difference=arm.mean - own.mean, interval=percentiles(arm.mean_B - own.mean_B))
            for name, arm in measured.items()
        },
    )


def read_facts(evaluation: Path) -> Facts:
    """Read `facts.json` of a registered version's evaluation folder."""
    return Facts.model_validate_json((evaluation / "facts.json").read_text())


def of_total(facts: Facts) -> str:
    """Return `n of m` with what is missing."""
    text = f"{facts.evaluated} of {facts.listed}"
    return text if facts.evaluated == facts.listed else f"{text} listed ({facts.in_shards} in the shards)"


def card(facts: Facts, report: GateReport | None) -> str:
    """Return the model card as markdown; the gate's table comes early, since a description may be cut."""
    lines = [f"# {facts.name}", ""]
    if facts.top1 is not None and facts.interval is not None:
        low, high = facts.interval
        lines.append(
            f"Top-1 on `{facts.split}`: **{facts.top1:.1%}** [{low:.1%}, {high:.1%}] (95 %, Wilson), evaluated on "
            f"{of_total(facts)}; most frequent class {facts.majority:.1%}."
        )
    if facts.boxes is not None:
        low, high = facts.boxes.interval
        lines.append(
            f"mAP50 on `{facts.split}`: **{facts.boxes.map50:.1%}** [{low:.1%}, {high:.1%}] (95 %, bootstrap over "
            f"videos), evaluated on {of_total(facts)}: {facts.boxes.objects} boxes in {facts.boxes.frames} "
            f"labelled frames. Overlap ≥ 0.5, area below the precision envelope."
        )
    if facts.gmac is not None:
        parameters = f", {facts.params / 1e6:.2f} M parameters" if facts.params is not None else ""
        lines.append(f"Cost: {facts.gmac:.4g} GMAC = {2 * facts.gmac:.4g} GFLOP per {facts.cost_unit}{parameters}.")
    p50, p95 = (facts.metrics.get(f"{facts.split}/latency_ms_{name}") for name in ("p50", "p95"))
    if p50 is not None and p95 is not None:
        lines.append(
            f"Latency: {p50:.3g} ms (p95 {p95:.3g} ms) per video of decoded frames, batch 1, on {facts.hardware}."
        )
    lines += ["", "## Gate", ""]
    if report is None:
        lines.append("Not gated.")
    else:
        lines += [
            f"**{report.decision}**: {report.reason}",
            "",
            "| check | value | bound | pass |",
            "|---|---|---|---|",
        ]
        lines += ["| " + " | ".join(row) + " |" for row in zip(*report.table().values(), strict=True)]
    if facts.arms:
        head = f"| model | {facts.measure} | GMAC |"
        lines += ["", "## Compared in the same evaluation", "", head, "|---|---|---|"]
        for name, arm in facts.arms.items():
            boxes = facts.boxes.arms.get(name) if facts.boxes else None
            score = boxes.map50 if boxes else arm.top1
            top1 = "–" if score is None else f"{score:.1%}"
            lines.append(f"| {name} | {top1} | {'–' if arm.gmac is None else f'{arm.gmac:.4g}'} |")
    rejects = ", ".join(f"{reason} {count}" for reason, count in facts.rejects.items()) or "none"
    lines += [
        "",
        "## Data",
        "",
        f"- data set `{facts.dataset}`, {facts.classes} classes, {facts.representation}, encoded by {facts.encoder}",
        f"- rejected videos (all splits): {rejects}",
        f"- digest of all shards `{facts.data_digest[:16]}`, of the evaluated split `{facts.eval_data_digest[:16]}`, "
        f"of the specification `{facts.spec_digest[:16]}`",
        *(f"- DVC `{path}`: `{md5}`" for path, md5 in facts.dvc.items()),
        "",
        "## Lineage",
        "",
        f"- made by `{facts.subject}`, judged by `{facts.evaluation}`, model digest `{facts.model_digest[:16]}`, "
        f"{facts.model_bytes / 1e6:.2f} MB",
        f"- git {_or_unknown(facts.git_commit)}{' with uncommitted changes' if facts.git_dirty == 'true' else ''}",
        f"- training run {_or_unknown(facts.training_run_id)}, evaluation run {_or_unknown(facts.evaluation_run_id)}, "
        f"Prefect flow run {_or_unknown(facts.flow_run_id)}",
        f"- trained on {_or_unknown(facts.hardware)}; "
        + ", ".join(f"{name} {version}" for name, version in facts.versions.items()),
        f"- registered {facts.registered}",
        "",
    ]
    return "\n".join(lines)


def _or_unknown(text: str) -> str:
    return f"`{text}`" if text else "not recorded"


def report_as_json(report: GateReport) -> str:
    """Return a gate report as JSON, for the report page."""
    return json.dumps(
        {
            "decision": report.decision,
            "challenger": report.challenger,
            "champion": report.champion,
            "reason": report.reason,
            "table": report.table(),
        },
        indent=1,
    )
