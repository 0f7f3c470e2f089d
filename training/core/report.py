"""`fovea report`: static pages of what is registered, without a service and without a network.

`reports/index.html` compares all versions; each version has a page of its own. A page is written again only when
something that it shows has changed, so a second call costs little.
"""

import json
import re
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_specs.schema import digest, read_index
from infra.settings import Settings
from training.core.charts import Point, Series, lines, number, pareto
from training.core.config import DataConfig, validate
from training.core.gate import mcnemar_exact
from training.core.lineage import Node, of_version
from training.core.modelcard import Facts, card, read_facts
from training.core.pages import markup, percent, percent_range, render_page, write_text
from training.core.registration import CHALLENGER, CHAMPION, Registry, RegistryError, Version
from training.core.report_classes import by_class
from training.core.report_clips import choose, policy, strips
from training.core.tracking import RunRecord, download_artifacts, list_artifacts, metric_history, read_run

LAYOUT = 1
"""Raised when the pages change their look: makes every page old."""

CHART_GROUPS = (
    ("loss", "loss", False),
    ("accuracy", "accuracy", True),
    ("top1", "accuracy", True),
    ("map50", "mAP50", True),
    ("reward", "reward", False),
    ("confidence", "confidence", False),
    ("entropy", "entropy", False),
)
"""Part of a metric's name → chart, whether in per cent. Other metrics stay in MLflow's own page."""


@dataclass(frozen=True)
class Shown:
    """A version with what it carries."""

    version: Version
    facts: Facts | None
    """None: registered by other means, nothing is known but its tags."""
    arrays: dict[str, NDArray[Any]]
    """Of `predictions.npz`; without boxes, which may be many."""
    config: dict[str, Any]
    predictions: Path
    """Where `predictions.npz` lies while pages are written."""

    @property
    def page(self) -> str:
        """File name of its page."""
        return f"{self.version.name}-{self.version.version}.html"


def write_report(settings: Settings, dataset: str | None = None) -> Path:
    """Write the pages and return the index.

    Args:
        settings: where store and project are.
        dataset: only this data set's models get new pages; the index always shows all.
    """
    registry = Registry.open(settings)
    folder = settings.reports
    folder.mkdir(parents=True, exist_ok=True)
    state_file = folder / "state.json"
    old: dict[str, str] = json.loads(state_file.read_text()) if state_file.exists() else {}
    new = dict(old)
    groups: dict[str, list[Shown]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for name in registry.names():
            for version in registry.versions(name):
                shown = _load(registry, version, Path(temporary) / name / version.version)
                group = shown.facts.dataset if shown.facts else version.tags.get("dataset", name)
                groups.setdefault(group, []).append(shown)
        for group, versions in groups.items():
            for shown in versions:
                state = _state(settings, shown)
                stale = old.get(shown.page) != state or not (folder / shown.page).exists()
                if shown.facts is not None and stale and dataset in (None, group):
                    _write(folder / shown.page, "version.html.j2", **_version_page(settings, shown))
                    new[shown.page] = state
    pages = copy_pages(settings)
    names = sorted({*groups, *pages})
    datasets = [_dataset(name, groups.get(name, [])) | {"pages": pages.get(name, [])} for name in names]
    _write(folder / "index.html", "index.html.j2", datasets=datasets)
    write_text(state_file, json.dumps(new, indent=1, sort_keys=True) + "\n")
    return folder / "index.html"


def copy_pages(settings: Settings) -> dict[str, list[dict[str, str]]]:
    """Copy the pages that report stages made beside the index: data set → links, sorted by stage."""
    from training.registry import all_stages

    found: dict[str, list[dict[str, str]]] = {}
    reports = sorted(stage.name for stage in all_stages().values() if stage.kind == "report")
    for run in sorted(settings.runs.iterdir()) if settings.runs.is_dir() else []:
        for stage in reports:
            page = run / stage / "page.html"
            if not page.exists():
                continue
            text = page.read_text()
            title = re.search(r"<title>(.*?)</title>", text, re.DOTALL)
            target = settings.reports / f"{run.name}-{stage}.html"
            if not target.exists() or target.read_text() != text:
                write_text(target, text)
            link = {"href": target.name, "title": unescape(title[1]).strip() if title else stage}
            found.setdefault(run.name, []).append(link)
    return found


def _load(registry: Registry, version: Version, target: Path) -> Shown:
    try:
        folder = registry.fetch_evaluation(version, target)
        facts = read_facts(folder)
        with np.load(folder / "predictions.npz") as file:
            arrays = {name: file[name] for name in file if not name.startswith("boxes/")}
        config = json.loads((folder / "config.json").read_text())
        return Shown(version, facts, arrays, config, folder / "predictions.npz")
    except (RegistryError, OSError, ValueError):
        return Shown(version, None, {}, {}, target)


def _state(settings: Settings, shown: Shown) -> str:
    """Return a digest of everything that a version's page depends on."""
    version = shown.version
    index = settings.shards / (shown.facts.dataset if shown.facts else "") / "index.json"
    return digest(
        [
            LAYOUT,
            version.tags,
            list(version.aliases),
            version.description,
            read_index(index.parent).data_digest() if index.exists() else "",
        ]
    )


# --- index ------------------------------------------------------------------------------------


def _dataset(name: str, versions: Sequence[Shown]) -> dict[str, Any]:
    known = [shown for shown in versions if shown.facts is not None]
    points = [_point(shown) for shown in known if _has_point(shown)]
    newest = known[-1] if known else None
    arms = _arms(newest) if newest else []
    points += [
        Point(arm["x"], arm["y"], arm["name"], "arm") for arm in arms if arm["x"] is not None and arm["y"] is not None
    ]
    digests = {shown.facts.eval_data_digest for shown in known if shown.facts}
    measure = " or ".join(sorted({shown.facts.measure for shown in known if shown.facts}, reverse=True)) or "top-1"
    unit = " or ".join(sorted({shown.facts.cost_unit for shown in known if shown.facts}, reverse=True)) or "video"
    return {
        "name": name,
        "measure": measure,
        "pareto": markup(pareto(points, f"GMAC per {unit}", measure)),
        "rows": [_row(shown) for shown in reversed(versions)],
        "arms": arms,
        "arms_of": str(newest.version) if newest else "",
        "mixed": len(digests) if len(digests) > 1 else 0,
    }


def _has_point(shown: Shown) -> bool:
    return shown.facts is not None and shown.facts.score is not None and shown.facts.gmac is not None


def _point(shown: Shown) -> Point:
    facts, version = shown.facts, shown.version
    assert facts is not None  # `_has_point` chose this one
    assert facts.score is not None
    assert facts.gmac is not None
    low, high = facts.score_interval or (None, None)
    kind = next((alias for alias in (CHAMPION, CHALLENGER) if alias in version.aliases), "version")
    label = f"{version}" + (f" ({kind})" if kind != "version" else "")
    title = f"{version}: {facts.measure} {facts.score:.1%}, {number(facts.gmac)} GMAC, "
    title += f"{facts.evaluated} of {facts.listed}"
    return Point(facts.gmac, facts.score, label, kind, low, high, title)


def _row(shown: Shown) -> dict[str, Any]:
    facts, version = shown.facts, shown.version
    row: dict[str, Any] = {
        "version": str(version),
        "page": shown.page if facts else "",
        "aliases": version.aliases,
        "gate": version.gate,
        "registered": time.strftime("%Y-%m-%d", time.gmtime(version.created)),
    }
    if facts is None:
        return row | dict.fromkeys(("top1", "interval", "evaluated", "gmac", "gflop", "params", "data"), "–")
    return row | {
        "top1": percent(facts.score),
        "interval": percent_range(facts.score_interval),
        "evaluated": f"{facts.evaluated} of {facts.listed}",
        "gmac": _maybe(facts.gmac),
        "gflop": _maybe(None if facts.gmac is None else 2 * facts.gmac),
        "params": _maybe(None if facts.params is None else facts.params / 1e6),
        "data": facts.eval_data_digest[:10],
    }


def _arms(shown: Shown) -> list[dict[str, Any]]:
    """Return the comparison models of an evaluation, each tested against the main model clip by clip."""
    facts, label = shown.facts, shown.arrays.get("label")
    if facts is not None and facts.boxes is not None:
        from training.core.report_boxes import arms  # imports torch

        return arms(facts, facts.boxes)
    if facts is None or label is None or label.ndim != 1:
        return []
    mine = shown.arrays["scores"].argmax(axis=1) == label
    rows = []
    for key in sorted(name for name in shown.arrays if name.startswith("arm/")):
        name = key.removeprefix("arm/")
        theirs = shown.arrays[key].argmax(axis=1) == label
        gmac = facts.arms[name].gmac if name in facts.arms else None
        rows.append(
            {
                "name": name,
                "x": gmac,
                "y": float(theirs.mean()),
                "top1": percent(float(theirs.mean())),
                "gmac": _maybe(gmac),
                "gflop": _maybe(None if gmac is None else 2 * gmac),
                "difference": f"{100 * (theirs.mean() - mine.mean()):+.1f} points",
                "p": f"{mcnemar_exact(int((theirs & ~mine).sum()), int((mine & ~theirs).sum())):.2g}",
                "evaluated": f"{facts.evaluated} of {facts.listed}",
            }
        )
    return rows


# --- one version ------------------------------------------------------------------------------


def _version_page(settings: Settings, shown: Shown) -> dict[str, Any]:
    facts, version = shown.facts, shown.version
    assert facts is not None
    chain = of_version(settings, version)
    clips, no_clips = _clips(settings, shown)
    return {
        "version": str(version),
        "aliases": version.aliases,
        "gate": version.gate,
        "facts": facts,
        "top1": percent(facts.score),
        "interval": percent_range(facts.score_interval),
        "majority": percent(facts.majority),
        "gmac": _maybe(facts.gmac),
        "gflop": _maybe(None if facts.gmac is None else 2 * facts.gmac),
        "params": "–" if facts.params is None else f"{facts.params / 1e6:.3g} M",
        "report": _gate_report(settings, version),
        "policy": policy(shown.arrays, shown.config),
        "no_clips": no_clips,
        **clips,
        **by_class(shown.arrays),
        "detection": _detection(shown),
        "curves": _curves(settings, chain),
        "lineage": chain,
        "card": version.description or card(facts, None),
    }


def _detection(shown: Shown) -> dict[str, Any] | None:
    """Return the charts of a model that finds boxes."""
    facts = shown.facts
    if facts is None or facts.boxes is None:
        return None
    from training.core.box_results import BoxResults  # imports torch
    from training.core.report_boxes import section

    with np.load(shown.predictions) as file:
        boxes = BoxResults.of({name: file[name] for name in file if name.startswith("boxes/")})
    return None if boxes is None else section(boxes, facts, tuple(str(name) for name in shown.arrays["classes"]))


def _gate_report(settings: Settings, version: Version) -> dict[str, Any] | None:
    if "gate/report.json" not in list_artifacts(settings, version.run_id, "gate"):
        return None
    with tempfile.TemporaryDirectory() as temporary:
        path = download_artifacts(settings, version.run_id, "gate/report.json", Path(temporary))
        report: dict[str, Any] = json.loads(path.read_text())
    report["rows"] = list(zip(*report["table"].values(), strict=True))
    return report


def _clips(settings: Settings, shown: Shown) -> tuple[dict[str, Any], str]:
    """Return film strips of right and wrong predictions, or why there are none."""
    from training.core.decode import resolve_decoder
    from training.core.sample_reader import read_samples

    facts = shown.facts
    assert facts is not None
    if facts.boxes is not None:
        return {}, ""
    if shown.arrays["label"].ndim != 1:
        return {}, "Clips are shown for single-label data sets only."
    shards = settings.shards / facts.dataset
    if not (shards / "index.json").exists():
        return {}, f"The shards are not on this disk; `dvc pull data/shards/{facts.dataset}` fetches them."
    if read_index(shards).data_digest(facts.split) != facts.eval_data_digest:
        return {}, "The shards on this disk are another version than the evaluated one."
    right, wrong, total = choose(shown.arrays["label"], shown.arrays["scores"], 6, 12)
    config = validate(DataConfig, shown.config["data"], f"data block of {shown.version}")
    samples = read_samples(shards, [str(shown.arrays["key"][i]) for i in right + wrong], facts.split)
    decoder = resolve_decoder(config.decoder)
    return {
        "examples": strips(right, samples, shown.arrays, config, decoder, 8),
        "wrong": strips(wrong, samples, shown.arrays, config, decoder, 4),
        "wrong_total": total,
    }, ""


def _curves(settings: Settings, chain: Node) -> list[dict[str, Any]]:
    """Return the charts of the training runs in a version's chain, first stage first."""
    runs: dict[str, RunRecord] = {}
    for node in chain.walk():
        run = read_run(settings, node.facts["run"]) if node.kind == "run" and "run" in node.facts else None
        if run is not None and run.tags.get("kind", "fit") == "fit":
            runs.setdefault(run.run_id, run)
    stages = []
    for run in sorted(runs.values(), key=lambda item: item.start_time):
        charts: dict[str, tuple[bool, list[Series]]] = {}
        for key in sorted(run.metrics):
            group = next(((g, p) for part, g, p in CHART_GROUPS if part in key.rsplit("/", 1)[-1]), None)
            if group is None or key.startswith("test/"):
                continue
            points = metric_history(settings, run.run_id, key)
            if len(points) > 1 or key.startswith("val/top1"):
                name = key.removeprefix("train/") if key.startswith("train/") else key
                charts.setdefault(group[0], (group[1], []))[1].append(Series(name, points))
        drawn = [markup(lines(series, title, percent)) for title, (percent, series) in charts.items()]
        if any(drawn):
            stages.append({"name": run.name, "charts": [chart for chart in drawn if chart]})
    return stages


# --- writing ----------------------------------------------------------------------------------


def _write(path: Path, template: str, **values: Any) -> None:
    defaults: dict[str, Any] = dict.fromkeys(
        (
            "examples",
            "wrong",
            "wrong_total",
            "per_class",
            "confusion",
            "policy",
            "curves",
            "report",
            "no_clips",
            "detection",
        )
    )
    write_text(path, render_page("training.core", template, **(defaults | values)))


def _maybe(value: float | None) -> str:
    return "–" if value is None else number(value)
