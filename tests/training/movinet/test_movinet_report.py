"""The report of the MoViNet family, on run folders that the real writers wrote."""

import itertools
import json
import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml

from training.backbones.movinet_cost import conv_macs, num_parameters, state_elements
from training.backbones.movinet_layout import ARCHITECTURES, VARIANTS, MoViNetLayout, architecture
from training.core.charts_compare import CHARACTER
from training.core.evaluate import Evaluation, Predictions
from training.core.gate import mcnemar_exact
from training.core.metrics import classification_metrics
from training.core.search_run import write_result
from training.core.trials import Outcome, Trial
from training.movinet.report.findings import analyse
from training.movinet.report.paired import compare
from training.movinet.report.records import STAGES, Net, read_results
from training.movinet.report.run_folder import RecordError
from training.movinet.report.stage import MoViNetReport

CLASSES = ("left", "right", "<b>up</b> & down", "still")
KERNELS = ("1x3x3", "1x5x5", "3x3x3", "5x3x3", "5x1x1")
EXPANSIONS = (1.5, 2.0, 3.0)
WIDTHS = (16, 32, 48)
FRAMES, SIDE, WIDTH = 16, 64, 0.25
CONFIG = SimpleNamespace(bootstrap=200, seed=0)


def data(**changed: Any) -> dict[str, Any]:
    return {"num_frames": FRAMES, "eval_clips": 1, "transform": {"size": SIDE, "eval_size": None}, **changed}


def layout_of(rng: random.Random, temporal: float | None = None) -> tuple[MoViNetLayout, dict[str, Any]]:
    """An architecture of a small space; `temporal` is the chance of kernels that see several frames."""
    blocks, genes = [], []
    for width in WIDTHS:
        layers, drawn = [], []
        for _ in range(rng.randint(1, 4)):
            kernel = rng.randrange(5)
            if temporal is not None:
                kernel = rng.choice((2, 3, 4)) if rng.random() < temporal else rng.choice((0, 1))
            expansion, gate = rng.randrange(3), rng.randrange(2)
            layers.append(f"{KERNELS[kernel]}:{int(8 * (width * EXPANSIONS[expansion] // 8))}{'/no-gate' * gate}")
            drawn.append([kernel, expansion, gate])
        blocks.append({"width": width, "stride": 2, "layers": " ".join(layers)})
        genes.append({"width": 0, "layers": drawn})
    entry = {"stem": 8, "blocks": blocks, "project": 96, "head": 128}
    return MoViNetLayout.parse(entry), {"stem": 0, "project": 0, "blocks": genes}


class Builder:
    """Run folders below `runs/demo`, and the argument `results` of the report."""

    def __init__(self, root: Path, clips: int = 200, classes: Sequence[str] = CLASSES) -> None:
        self.root, self.classes = root / "runs" / "demo", tuple(classes)
        self.rng = np.random.default_rng(0)
        self.labels = {split: self.rng.integers(0, len(classes), clips) for split in ("val", "test")}
        self.hard = self.rng.random(clips)
        self.results: dict[str, tuple[Path, ...]] = {stage: () for stage in STAGES}

    def folder(self, stage: str, items: str = "") -> Path:
        path = self.root / stage / items
        path.mkdir(parents=True, exist_ok=True)
        self.results[stage] = (*self.results[stage], path)
        return path

    def scores(self, split: str, top1: float) -> np.ndarray:
        """Probabilities that are right for about a share of the clips, mostly the same ones for every net."""
        label, count = self.labels[split], len(self.classes)
        right = 0.7 * self.hard + 0.3 * self.rng.random(len(label)) < 0.15 + 0.7 * top1
        named = np.where(right, label, (label + 1) % count)
        logits = self.rng.normal(size=(len(label), count))
        logits[np.arange(len(label)), named] += 8
        values = np.exp(logits)
        return (values / values.sum(1, keepdims=True)).astype(np.float32)

    def evaluation(
        self,
        folder: Path,
        split: str,
        top1: float,
        costs: Mapping[str, float],
        arms: Mapping[str, np.ndarray] | None = None,
        extras: Mapping[str, np.ndarray] | None = None,
        arm_costs: Mapping[str, Mapping[str, float]] | None = None,
    ) -> None:
        label = self.labels[split]
        scores = self.scores(split, top1)
        metrics = classification_metrics(scores, label, split) | {f"{split}/{name}": v for name, v in costs.items()}
        for arm in arms or {}:
            chosen = {**costs, **(arm_costs or {}).get(arm, {})}
            metrics |= {f"{split}/{name}_{arm}": v for name, v in chosen.items() if name != "state_bytes"}
        keys = np.asarray([f"clip{i:05d}" for i in range(len(label))])
        predictions = Predictions(keys, label, scores, dict(arms or {}), dict(extras or {}), self.classes)
        Evaluation(metrics, predictions).save(folder)

    def costs(self, layout: MoViNetLayout, variant: str = "base", frames: int = FRAMES) -> dict[str, float]:
        made = VARIANTS[variant]
        costs = {
            "gmac_per_video": conv_macs(layout, made, frames, SIDE, len(self.classes))["total"] / 1e9,
            "params": float(num_parameters(layout, made, len(self.classes))),
        }
        if made.causal:
            costs["state_bytes"] = 4.0 * state_elements(layout, made, SIDE)["total"]
        return costs

    def fit(self, stage: str, top1: float, items: str = "", variant: str = "base", **config: Any) -> Path:
        folder = self.folder(stage, items)
        model = config.pop("model", {"architecture": "a0", "width": WIDTH})
        layout = architecture(model["architecture"]).scaled(model["width"])
        frames = FRAMES // 2 if stage == "movinet_half" else FRAMES
        self.evaluation(folder, "val", top1, self.costs(layout, variant, frames))
        values = {"model": model, "variant": variant, "data": data(), "fit": {"steps": 100}, **config}
        (folder / "config.json").write_text(json.dumps(values))
        return folder

    def evaluate(self, stage: str, top1: float, **parts: Any) -> Path:
        folder = self.folder(stage)
        variant = "stream" if "stream" in stage else "base"
        costs = self.costs(architecture("a0").scaled(WIDTH), variant)
        self.evaluation(folder, "test", top1, costs, **parts)
        (folder / "config.json").write_text(json.dumps({"model": {}, "data": data()}))
        return folder

    def stream(self, top1: float = 0.6) -> Path:
        """The stream's evaluation: scores of the whole clip are those of the stream but for rounding."""
        folder = self.evaluate("movinet_stream_eval", top1)
        stored = Predictions.load(folder / "predictions.npz")
        rises = np.linspace(0.25, 1.0, FRAMES)[None] > self.rng.random((len(stored.key), 1))
        last = stored.scores.argmax(1)[:, None]
        running = np.where(rises, last, (last + 1) % len(self.classes))
        metrics = json.loads((folder / "metrics.json").read_text())
        metrics |= {
            "test/gmac_per_video_clip": metrics["test/gmac_per_video"],
            "test/params_clip": metrics["test/params"],
        }
        clip = stored.scores + np.float32(1e-6)
        changed = Predictions(
            stored.key, stored.label, stored.scores, {"clip": clip}, {"running_top1": running}, stored.classes
        )
        Evaluation(metrics, changed).save(folder)
        return folder

    def ensemble(self, top1: float = 0.66) -> Path:
        arms = {
            name: self.scores("test", top1 + change)
            for name, change in (("member0", -0.06), ("member1", -0.08), ("probabilities", -0.01), ("aligned", -0.02))
        }
        half = {"gmac_per_video": 0.01, "params": 1e5}
        return self.evaluate("movinet_ensemble", top1, arms=arms, arm_costs={"member0": half, "member1": half})

    def search(
        self,
        engine: str,
        control: str = "none",
        seed: int = 0,
        candidates: int = 24,
        failed: Sequence[int] = (),
        **config: Any,
    ) -> Path:
        """A search by the real writer; candidates of a real search grow more temporal and better."""
        folder = self.folder("movinet_search", f"{engine}-{control}-{seed}")
        rng = random.Random(f"{engine}/{control}/{seed}")
        layouts = [layout_of(rng, None if engine == "random" or control != "none" else 0.5 + 0.4 * i / candidates)
                   for i in range(candidates)]  # fmt: skip
        costs = [self.costs(layout)["gmac_per_video"] for layout, _ in layouts]
        target = {"kind": "gmac", "value": 0.056, "tolerance": 0.3}
        outcomes = []
        for place, ((layout, genes), cost) in enumerate(zip(layouts, costs, strict=True)):
            layers = [layer for block in layout.blocks for layer in block.layers]
            quality = 0.3 + 0.3 * sum(layer.kernel[0] > 1 for layer in layers) / len(layers) + rng.gauss(0, 0.02)
            bad = place in failed
            trial = Trial(
                f"c{place:05d}",
                "candidates",
                config={"genotype": genes, "architecture": layout.entry()},
                facts={"gmac": cost, "params": self.costs(layout)["params"], "cost": cost, "order": float(place)},
            )
            metrics = {} if bad else {"val/top1": quality, "val/nll": 1.0}
            outcomes.append(
                Outcome(trial, "failed" if bad else "finished", 0, None if bad else quality, metrics, [],
                        "out of memory <x>" if bad else None)
            )  # fmt: skip
        valued = [o for o in outcomes if o.value is not None and abs(o.trial.facts["cost"] / target["value"] - 1) < 0.3]
        top = max(valued, key=lambda outcome: outcome.value or 0.0, default=None)
        found: dict[str, Any] = {"architecture": None, "trial": None}
        if top is not None:
            found = {"architecture": top.trial.config["architecture"], "trial": top.trial.name, **top.trial.facts}

        class Left:
            def summary(self) -> dict[str, float]:
                return {}

            def files(self) -> dict[str, str]:
                return {"found.yaml": yaml.safe_dump(found)}

        write_result(folder, folder, Left(), outcomes, "val/top1", "max", scored=True, leaves=("found.yaml",))  # type: ignore[arg-type]
        space = {"kernels": KERNELS, "expansions": EXPANSIONS, "gates": [True, False]}
        values = {
            "engine": engine, "control": control, "seed": seed, "target": target, "space": space, "data": data(),
            "reward": {"kind": "absolute", "beta": -0.1}, "reinforce": {"name": "reinforce", "baseline": 0.95},
            "budget": candidates, **config,
        }  # fmt: skip
        (folder / "config.json").write_text(json.dumps(values))
        return folder

    def found(self, engine: str, control: str = "none", seed: int = 0, top1: float = 0.7) -> Path:
        items = f"{engine}-{control}-{seed}"
        found = yaml.safe_load((self.root / "movinet_search" / items / "found.yaml").read_text())
        model = {"architecture": found["architecture"], "width": 1.0}
        return self.fit("movinet_found", top1, items, model=model, engine=engine, control=control, seed=seed)

    def everything(self, seeds: int = 2, candidates: int = 24) -> None:
        self.fit("movinet_train", 0.6)
        self.evaluate("movinet_eval", 0.58)
        self.fit("movinet_stream", 0.58, variant="stream")
        self.stream()
        for member in "01":
            self.fit("movinet_half", 0.55, member, variant="base_2plus1d")
        self.ensemble()
        arms = [("evolution", "none", 0.75), ("reinforce", "none", 0.7), ("random", "none", 0.5)]
        arms += [("evolution", control, 0.5) for control in ("shuffled", "untrained", "cost_only")]
        for (engine, control, top1), seed in itertools.product(arms, range(seeds)):
            self.search(engine, control, seed, candidates, failed=(3,) if seed == 1 else ())
            self.found(engine, control, seed, top1 + 0.02 * seed)

    def write(self, folder: Path) -> tuple[str, dict[str, float]]:
        folder.mkdir(parents=True, exist_ok=True)
        metrics = MoViNetReport(CONFIG, self.classes, self.results).write(folder)
        return (folder / "page.html").read_text(), metrics


@pytest.fixture
def runs(tmp_path: Path) -> Builder:
    return Builder(tmp_path)


# --- what is read off a page ----------------------------------------------------------------------


def checked(text: str) -> list[ElementTree.Element]:
    """The page's charts as trees, after what holds for every page."""
    assert "<script" not in text
    assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//""", text)
    assert not re.search(r"\bnan\b|\binf\b|None", words(text))
    for tag in ("table", "details", "div", "figure", "p"):
        assert len(re.findall(rf"<{tag}[ >]", text)) == text.count(f"</{tag}>"), tag
    return [ElementTree.fromstring(chart) for chart in re.findall(r'<svg class="chart".*?</svg>', text, re.DOTALL)]


def words(text: str) -> str:
    """What is read: no tags, one space between words."""
    return " ".join(re.sub(r"<[^>]+>", " ", re.sub(r"<style>.*?</style>", "", text, flags=re.DOTALL)).split())


def boxes(chart: ElementTree.Element) -> list[tuple[str, float, float, float]]:
    found = []
    for item in chart.iter("text"):
        wide, x, y = CHARACTER * len(item.text or ""), float(item.get("x", 0)), float(item.get("y", 0))
        left = x - {"middle": wide / 2, "end": wide}.get(item.get("text-anchor", ""), 0)
        found.append((item.text or "", left, left + wide, y))
    return found


def overlaps(chart: ElementTree.Element) -> list[tuple[str, str]]:
    return [
        (one[0], two[0])
        for one, two in itertools.combinations(boxes(chart), 2)
        if abs(one[3] - two[3]) < 11 and one[1] < two[2] - 2 and two[1] < one[2] - 2
    ]


def outside(chart: ElementTree.Element) -> list[str]:
    """Texts that leave the picture at its sides."""
    width = float(chart.get("viewBox", "").split()[2])
    return [text for text, left, right, _ in boxes(chart) if left < -CHARACTER or right > width + CHARACTER]


def test_overlaps_and_cut_texts_are_found() -> None:
    """The control of the tests below."""
    chart = ElementTree.fromstring(
        '<svg viewBox="0 0 60 50"><text x="9" y="10">one</text><text x="12" y="14">two</text>'
        '<text x="40" y="40">three three</text></svg>'
    )
    assert overlaps(chart) == [("one", "two")]
    assert outside(chart) == ["three three"]


# --- whole pages ----------------------------------------------------------------------------------


def test_everything(runs: Builder, tmp_path: Path) -> None:
    runs.everything()
    text, metrics = runs.write(tmp_path / "report")
    charts = checked(text)
    assert [overlaps(chart) for chart in charts] == [[]] * len(charts)
    assert [outside(chart) for chart in charts] == [[]] * len(charts)
    read = words(text)
    for piece in ("evolution, shuffled", "random", "hand-made: a0", "Kendall", "Holm", "Not there yet"):
        assert (piece in read) == (piece != "Not there yet"), piece
    assert "MoViNet: demo" in read
    # One panel per search, each with its own title.
    assert sum(chart.get("aria-label", "").startswith("history of") for chart in charts) == 12
    assert sum(chart.get("aria-label", "").startswith("architecture of") for chart in charts) == 3
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == ["page.html", "report.json"]
    stored = json.loads((tmp_path / "report" / "report.json").read_text())
    assert stored["metrics"] == metrics
    assert all(isinstance(value, float) for value in metrics.values())
    nets = [net for net in stored["nets"] if net["split"] == "val"]
    assert metrics["val/best_top1"] == max(net["top1"] for net in nets)
    assert len(nets) == metrics["report/trained_nets"] == 1 + 1 + 2 + 12
    assert metrics["report/found_gain"] > 0 < metrics["report/random_gain"]
    assert metrics["report/tau_nets"] == 10  # two of twelve come from an untrained supernet
    assert metrics["report/temporal_share"] > 0.6
    assert 0 < metrics["report/stream_difference"] < 1e-5


def test_the_page_does_not_depend_on_chance(runs: Builder, tmp_path: Path) -> None:
    runs.everything(seeds=1)
    first, second = (runs.write(tmp_path / name)[0] for name in "ab")
    written = re.compile(r"Written .*? UTC")
    assert written.sub("", first) == written.sub("", second)


def test_nothing_yet_says_what_to_make(runs: Builder, tmp_path: Path) -> None:
    text, metrics = runs.write(tmp_path / "report")
    assert checked(text) == []
    assert metrics["val/best_top1"] == metrics["report/trained_nets"] == 0.0
    read = words(text)
    assert "No net was trained yet" in read
    assert all(stage in read for stage in STAGES)
    assert "dvc repro movinet_train@&lt;dataset&gt;" in read
    # Stages that the argument does not name at all are the same.
    runs.results = {}
    assert words(runs.write(tmp_path / "other")[0]).split("Written")[0] == read.split("Written")[0]


def test_without_search(runs: Builder, tmp_path: Path) -> None:
    runs.fit("movinet_train", 0.6)
    text, metrics = runs.write(tmp_path / "report")
    checked(text)
    read = words(text)
    assert "dvc repro movinet_eval@demo" in read
    assert "name engines, controls and seeds in params.yaml, then: dvc repro movinet_search" in read
    assert "Candidates of the searches" not in read
    assert "hand-made: a0" in read
    assert set(metrics) == {"val/best_top1", "report/trained_nets", "report/tau_nets"}


@pytest.mark.parametrize("stage", STAGES)
def test_each_stage_may_be_missing(runs: Builder, tmp_path: Path, stage: str) -> None:
    runs.everything(seeds=1, candidates=12)
    runs.results[stage] = ()
    text, metrics = runs.write(tmp_path / "report")
    charts = checked(text)
    assert [overlaps(chart) for chart in charts] == [[]] * len(charts)
    assert f"{stage} ," in words(text)
    assert metrics["val/best_top1"] > 0


def test_one_candidate(runs: Builder, tmp_path: Path) -> None:
    runs.fit("movinet_train", 0.6)
    runs.search("reinforce", candidates=1)
    runs.found("reinforce")
    text, _ = runs.write(tmp_path / "report")
    charts = checked(text)
    assert [overlaps(chart) for chart in charts] == [[]] * len(charts)
    assert "1 of the nets count: too few for a rank correlation" in words(text)


def test_failed_trials_are_counted_and_not_scored(runs: Builder, tmp_path: Path) -> None:
    runs.search("evolution", candidates=8, failed=(0, 5))
    text, _ = runs.write(tmp_path / "report")
    checked(text)
    assert "8 candidates, 2 failed" in words(text)
    (search,) = read_results(runs.results).searches
    assert [candidate.name for candidate in search.candidates if candidate.top1 is None] == ["c00000", "c00005"]


def test_search_of_which_all_trials_failed(runs: Builder, tmp_path: Path) -> None:
    runs.search("evolution", candidates=2, failed=(0, 1))
    text, metrics = runs.write(tmp_path / "report")
    checked(text)
    assert "none of its 2 candidates was scored" in words(text)
    assert "report/found_top1" not in metrics


def test_one_class(tmp_path: Path) -> None:
    runs = Builder(tmp_path, classes=("all",))
    runs.everything(seeds=1, candidates=8)
    text, metrics = runs.write(tmp_path / "report")
    checked(text)
    assert metrics["val/best_top1"] == 1.0
    assert "they differ on 0 clips only" in words(text).lower()


def test_class_names_are_escaped(runs: Builder, tmp_path: Path) -> None:
    runs.everything(seeds=1)
    text, _ = runs.write(tmp_path / "report")
    assert "<b>up" not in text
    assert "&lt;b&gt;up&lt;/b&gt; &amp; down" in text


def test_stream_without_its_extras_says_so(runs: Builder, tmp_path: Path) -> None:
    runs.evaluate("movinet_stream_eval", 0.6)
    text, metrics = runs.write(tmp_path / "report")
    checked(text)
    assert "running_top1" in text
    assert "is not known" in words(text)
    assert "report/stream_difference" not in metrics


def test_many_candidates_are_thinned_and_the_page_says_so(runs: Builder, tmp_path: Path) -> None:
    folder = runs.search("evolution", candidates=20)
    rows = json.loads((folder / "trials.json").read_text())
    many = [
        {**row, "name": f"{row['name']}-{copy}" if copy else row["name"],
         "facts": {**row["facts"], "order": 20.0 * copy + place}}
        for copy in range(400)
        for place, row in enumerate(rows)
    ]  # fmt: skip
    assert "one in" not in words(runs.write(tmp_path / "few")[0])
    (folder / "trials.json").write_text(json.dumps(many))
    text, _ = runs.write(tmp_path / "many")
    checked(text)
    assert "8000 candidates" in words(text)
    assert "Of many candidates one in 2 is drawn" in words(text)
    assert len(text) < 1_000_000


def test_searches_with_other_targets_share_a_chart(runs: Builder, tmp_path: Path) -> None:
    for seed in range(3):
        folder = runs.search("evolution", seed=seed)
        config = json.loads((folder / "config.json").read_text())
        config["target"]["value"] *= 1 + 0.05 * seed
        (folder / "config.json").write_text(json.dumps(config))
    text, _ = runs.write(tmp_path / "report")
    charts = checked(text)
    assert [overlaps(chart) for chart in charts] == [[]] * len(charts)
    assert words(text).count("± 30 %") == 3


# --- numbers --------------------------------------------------------------------------------------


def test_a_difference_that_is_there_is_found_and_one_that_is_not_is_not(runs: Builder) -> None:
    runs.fit("movinet_train", 0.6)
    for seed, top1 in enumerate((0.85, 0.85, 0.85)):
        runs.search("evolution", seed=seed)
        runs.found("evolution", seed=seed, top1=top1)
        runs.search("evolution", "shuffled", seed=seed)
        runs.found("evolution", "shuffled", seed=seed, top1=0.6)
    findings = analyse(read_results(runs.results), resamples=500)
    rows = {row.first: row for row in findings.found}
    assert rows["evolution"].verdict == "better"
    assert rows["evolution"].low > 0.1
    assert rows["evolution, shuffled"].verdict == "not clear"
    assert len(rows) == 2 + 6


def test_unequal_conditions_are_named(runs: Builder, tmp_path: Path) -> None:
    runs.fit("movinet_train", 0.6, fit={"steps": 500})
    runs.search("evolution")
    runs.found("evolution")
    (row,) = analyse(read_results(runs.results)).found
    assert row.unequal == ("steps",)
    assert "also differ in steps" in words(runs.write(tmp_path / "report")[0])


def test_found_streams_are_compared_with_the_hand_made_stream(runs: Builder) -> None:
    runs.fit("movinet_train", 0.6)
    runs.fit("movinet_stream", 0.6, variant="stream")
    runs.search("evolution")
    folder = runs.found("evolution")
    assert analyse(read_results(runs.results)).reference.name == "train"  # type: ignore[union-attr]
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "variant": "stream"}))
    assert analyse(read_results(runs.results)).reference.name == "stream"  # type: ignore[union-attr]


def test_temporal_shares(runs: Builder) -> None:
    runs.search("evolution", candidates=200)
    runs.search("random", candidates=200)
    evolution, drawn = analyse(read_results(runs.results)).groups
    assert evolution.expected == drawn.expected == 0.6  # three of five kernels
    assert evolution.temporal_last is not None
    assert evolution.temporal_last.low > 0.6
    assert drawn.temporal_last is not None
    assert drawn.temporal_last.low < 0.6 < drawn.temporal_last.high
    assert evolution.temporal_best is not None
    assert evolution.temporal_best.value > drawn.temporal_last.value
    for options in evolution.options:
        assert sum(options.all) == pytest.approx(1)
        assert sum(options.best) == pytest.approx(1)
        assert len(options.names) * (options.uniform or 0) == pytest.approx(1)
    assert [options.kind for options in evolution.options] == ["kernel", "expansion", "gate"]


def test_rank_correlation(runs: Builder) -> None:
    results = {}
    for seed in range(5):
        runs.search("evolution", seed=seed)
        results[seed] = next(s for s in read_results(runs.results).searches if s.seed == seed).inherited
    ranked = sorted(results, key=lambda seed: results[seed] or 0.0)
    for place, seed in enumerate(ranked):
        runs.found("evolution", seed=seed, top1=0.3 + 0.12 * place)
    ranks = analyse(read_results(runs.results)).ranks
    assert ranks.nets == 5
    assert ranks.value == pytest.approx(1)
    runs.results["movinet_found"] = runs.results["movinet_found"][:4]
    assert analyse(read_results(runs.results)).ranks.value is None


def test_baseline_of_a_policy_is_computed_again(runs: Builder) -> None:
    runs.search("reinforce", candidates=5)
    runs.search("evolution", candidates=5)
    evolution, reinforce = sorted(read_results(runs.results).searches, key=lambda search: search.engine)
    assert all(candidate.baseline is None for candidate in evolution.candidates)
    rewards = [
        (candidate.top1 or 0.0) - 0.1 * abs(candidate.cost / reinforce.target - 1) for candidate in reinforce.candidates
    ]
    mean = rewards[0]
    for candidate, reward in zip(reinforce.candidates, rewards, strict=True):
        mean = 0.95 * mean + 0.05 * reward
        assert candidate.baseline == pytest.approx(mean)


def test_stream_and_ensemble_numbers(runs: Builder) -> None:
    folder = runs.stream(0.6)
    runs.ensemble()
    findings = analyse(read_results(runs.results))
    stored = Predictions.load(folder / "predictions.npz")
    assert findings.stream is not None
    assert len(findings.stream.after) == FRAMES
    assert findings.stream.after[-1].value == findings.stream.top1.value
    assert findings.stream.after[0].value == np.mean(stored.extras["running_top1"][:, 0] == stored.label)
    assert findings.stream.changed == 0
    assert {row.second for row in findings.ensemble} == {
        f"ensemble {name}" for name in ("aligned", "member0", "member1", "probabilities")
    }
    members = next(row for row in findings.ensemble if row.second == "ensemble member0")
    assert members.cost_ratio > 1


def test_means_over_nets_are_tested_without_bias() -> None:
    rng = np.random.default_rng(1)
    clips, repeats = 300, 200
    label = np.zeros(clips, int)

    def net() -> Net:
        right = (rng.random(clips) < 0.85).astype(np.float32)
        scores, key = np.stack([right, 1 - right], 1), np.arange(clips).astype(str)
        config = {"data": data(), "variant": "base"}
        return Net("net", "movinet_train", "val", 1.0, 1, None, key, label, scores, {}, config)

    rows = [compare([net(), net(), net()], [net()], ("three", "one"), resamples=100, seed=0) for _ in range(repeats)]
    assert sum(row.p < 0.05 for row in rows) < 0.1 * repeats
    # The control: counting won and lost clips would find differences that are not there.
    assert sum(mcnemar_exact(row.gained, row.lost) < 0.05 for row in rows) > 0.9 * repeats


# --- what cannot be compared ----------------------------------------------------------------------


def test_other_clips_are_refused(runs: Builder, tmp_path: Path) -> None:
    runs.fit("movinet_train", 0.6)
    path = runs.fit("movinet_stream", 0.6, variant="stream") / "predictions.npz"
    stored = Predictions.load(path)
    keys = np.asarray(["other", *stored.key[1:]])
    Predictions(keys, stored.label, stored.scores, {}, {}, stored.classes).save(path)
    with pytest.raises(RecordError, match=r"train and stream were evaluated on different val clips: 2 belong"):
        runs.write(tmp_path / "report")
    label = (stored.label + 1) % len(CLASSES)
    Predictions(stored.key, label, stored.scores, {}, {}, stored.classes).save(path)
    with pytest.raises(RecordError, match="different labels for val clip 'clip00000'"):
        runs.write(tmp_path / "report")
    # The order of the rows is no difference.
    order = np.arange(len(stored.key))[::-1]
    Predictions(stored.key[order], stored.label[order], stored.scores[order], {}, {}, stored.classes).save(path)
    runs.write(tmp_path / "report")


def test_incomplete_folders_are_named(runs: Builder) -> None:
    folder = runs.fit("movinet_train", 0.6)
    (folder / "metrics.json").write_text('{"val/top1": 0.5}')
    with pytest.raises(RecordError, match=r"movinet_train.metrics\.json lacks val/gmac_per_video, val/params"):
        read_results(runs.results)
    (folder / "metrics.json").write_text("{")
    with pytest.raises(RecordError, match="is no JSON"):
        read_results(runs.results)
    (folder / "metrics.json").write_text('{"val/gmac_per_video": 0, "val/params": 1}')
    with pytest.raises(RecordError, match="must be a positive number"):
        read_results(runs.results)
    (folder / "predictions.npz").unlink()
    with pytest.raises(RecordError, match=r"predictions\.npz is missing"):
        read_results(runs.results)
    with pytest.raises(RecordError, match="stages \\['movinet_other'\\] are not read"):
        read_results({"movinet_other": ()})


def test_incomplete_searches_are_named(runs: Builder) -> None:
    folder = runs.search("evolution", candidates=3)
    rows = json.loads((folder / "trials.json").read_text())
    del rows[1]["facts"]["cost"], rows[1]["facts"]["gmac"]
    (folder / "trials.json").write_text(json.dumps(rows))
    with pytest.raises(RecordError, match="trial 'c00001' has neither the fact `cost` nor 'gmac'"):
        read_results(runs.results)
    (folder / "config.json").write_text("{}")
    with pytest.raises(RecordError, match=r"config\.json lacks the field 'target'"):
        read_results(runs.results)


def test_entries_of_the_table_can_be_drawn(runs: Builder, tmp_path: Path) -> None:
    runs.fit("movinet_train", 0.6, model={"architecture": ARCHITECTURES["t0"], "width": 1.0})
    text, _ = runs.write(tmp_path / "report")
    (chart,) = [chart for chart in checked(text) if chart.get("aria-label", "").startswith("architecture")]
    assert sum(item.get("class") == "layer" for item in chart.iter("g")) == 14
