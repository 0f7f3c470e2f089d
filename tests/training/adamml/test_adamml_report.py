"""The page from plausible evaluations: 12 classes, told apart by picture, by sound or by both, as the spec's pilot."""

import json
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from training.adamml.report.findings import Findings, binomial, chosen
from training.adamml.report.records import RecordError, read_evaluations
from training.adamml.report.stage import AdaMMLReport
from training.core.evaluate import Predictions

CLASSES = tuple(f"{group} {i}" for group in ("sound", "picture", "both") for i in range(4))
COST = np.array([14.2, 0.4])
POLICY = 0.76
SEGMENTS = 10
MODALITIES = ("rgb", "audio")


@dataclass(frozen=True)
class Made:
    """A data set of one table of scores, in which each video has informative segments of some modalities."""

    label: np.ndarray
    telling: np.ndarray
    available: np.ndarray
    scores: np.ndarray


def make(videos: int = 400, classes: int = 12, silent: float = 0.2, seed: int = 0) -> Made:
    rng = np.random.default_rng(seed)
    label = rng.integers(0, classes, videos)
    group = label * 3 // classes
    telling = rng.random((videos, SEGMENTS, 2)) < 0.4
    telling[group == 0, :, 0] = False
    telling[group == 1, :, 1] = False
    available = np.ones((videos, SEGMENTS, 2), bool)
    available[(group != 0) & (rng.random(videos) < silent), :, 1] = False
    telling &= available
    scores = rng.normal(0, 0.8, (videos, SEGMENTS, 2, classes))
    scores[np.arange(videos)[:, None, None], np.arange(SEGMENTS)[:, None], np.arange(2), label[:, None, None]] += (
        5 * telling
    )
    return Made(label, telling, available, scores)


def softmax(x: np.ndarray) -> np.ndarray:
    powers = np.exp(x - x.max(axis=-1, keepdims=True))
    return (powers / powers.sum(axis=-1, keepdims=True)).astype(np.float32)


def evaluation(made: Made, price: float, blind: bool = False, classes: tuple[str, ...] = CLASSES) -> Predictions:
    """Return what a policy leaves that sees `telling` through noise, and uses less at a higher price."""
    rng = np.random.default_rng(int(100 * price) + 7)
    logits = 3.0 * made.telling - 1.0 + rng.normal(0, 1.2, made.telling.shape) - np.array([1.6, 0.3]) * price + 0.8
    if blind:
        logits = rng.permutation(logits.reshape(-1, 2)).reshape(logits.shape)
    choices = (logits > 0) & made.available
    videos, segments, _, _ = made.scores.shape

    def fused(used: np.ndarray) -> np.ndarray:
        return softmax((used[..., None] * made.scores).sum((1, 2)) / segments)

    alone = {
        name: softmax((made.scores * made.available[..., None])[:, :, k].sum(1)) for k, name in enumerate(MODALITIES)
    }
    return Predictions(
        key=np.array([f"video-{i:05d}" for i in range(videos)]),
        label=made.label,
        scores=fused(choices),
        arms={"fusion": fused(made.available), **alone},
        extras={
            "choices": choices,
            "available": made.available,
            "use_logits": logits.astype(np.float32),
            "segment_scores": made.scores.astype(np.float16),
            "weights": np.full((videos, 2), 0.5, np.float32),
            "gmac": (choices.sum(axis=1) @ COST + segments * POLICY).astype(np.float32),
        },
        classes=classes,
    )


def write_run(folder: Path, predictions: Predictions, price: float) -> Path:
    folder.mkdir(parents=True)
    predictions.save(folder / "predictions.npz")
    metrics = {"test/gmac_policy": POLICY, "test/gmac_rgb": COST[0], "test/gmac_audio": COST[1], "test/params": 4.2e7}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    model = {"modalities": list(MODALITIES), "mean": "segments", "least_one": False, "constants": "measured"}
    config = {"model": model, "price": price, "decide": "argmax", "draws": 2, "data": {}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, tuple[Path, ...]]:
    root = tmp_path_factory.mktemp("runs") / "sounds" / "adamml_eval"
    made = make()
    return {"adamml_eval": tuple(write_run(root / f"{p:g}", evaluation(made, p), p) for p in (1.0, 0.0, 0.3))}


def report(results, classes=CLASSES, modalities=MODALITIES) -> AdaMMLReport:
    return AdaMMLReport(SimpleNamespace(model=SimpleNamespace(modalities=modalities)), classes, results)


@pytest.fixture(scope="module")
def written(runs, tmp_path_factory) -> tuple[str, dict[str, float], dict]:
    folder = tmp_path_factory.mktemp("page")
    figures = report(runs).write(folder)
    return (folder / "page.html").read_text(), figures, json.loads((folder / "report.json").read_text())


def test_page_is_whole_static_and_says_what_it_counts(written):
    text, _, _ = written
    assert "<title>AdaMML: sounds</title>" in text
    assert "<script" not in text
    assert not re.findall(r"(?:src|href)=|url\(", text)  # nothing is fetched
    assert "on the test split, 400 videos" in text
    assert "GMAC" in text
    assert "decoding, resizing and spectrograms are not counted" in text
    for part in ("Accuracy against executed cost", "Paired differences", "Is it adaptive?", "Usage by class",
                 "Usage by position", "Videos with and without sound", "Single videos", "against price"):  # fmt: skip
        assert part in text
    assert text.count("<details") == 3
    assert text.count("<details open") == 1
    assert "nan" not in re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL).lower().split()
    assert ">inf" not in text


def test_every_chart_is_well_formed_and_inside_its_frame(written):
    # One level of images within images.
    charts = re.findall(r'<svg class="chart"(?:(?!</?svg).|<svg.*?</svg>)*</svg>', written[0], re.DOTALL)
    assert len(charts) > 30
    for chart in charts:
        root = ElementTree.fromstring(chart)
        width, height = (float(value) for value in root.attrib["viewBox"].split()[2:])
        for circle in root.iter("circle"):
            assert 0 <= float(circle.attrib["cx"]) <= width
            assert 0 <= float(circle.attrib["cy"]) <= height


def test_figures_are_of_the_cheapest_model_near_fusion(written, runs):
    _, figures, summary = written
    found = [Findings(each) for each in read_evaluations(runs, CLASSES, MODALITIES)]
    assert [each.evaluated.price for each in found] == [0, 0.3, 1]
    best = chosen(found)
    assert figures["test/price"] == best.evaluated.price == summary["chosen_price"]
    assert figures["test/top1"] == figures["test/best_top1"] == best.model.top1
    assert figures["test/saving_1"] > figures["test/saving_0.3"] > figures["test/saving_0"]
    assert figures["test/saving_1"] == pytest.approx(1 - figures["test/gmac_per_video_1"] / found[2].fusion.gmac)
    near = max(each.fusion.top1 for each in found) - 0.005
    assert all(each.model.top1 < near for each in found if each.model.gmac < best.model.gmac)
    # With no tolerance left the most accurate one is named.
    assert chosen(found, tolerance=-1.0).model.top1 == max(each.model.top1 for each in found)


def test_a_blind_policy_is_not_called_adaptive(runs, tmp_path):
    """Control: the same numbers of decisions, handed to the wrong videos."""
    found = [Findings(each) for each in read_evaluations(runs, CLASSES, MODALITIES)]
    seeing = found[1]
    assert seeing.usage[0].bits > 5 * seeing.usage[0].chance_bits
    assert seeing.comparisons[1].p < 1e-3
    root = tmp_path / "sounds" / "adamml_eval"
    blind_run = {"adamml_eval": (write_run(root / "0.3", evaluation(make(silent=0.0), 0.3, blind=True), 0.3),)}
    blind = Findings(read_evaluations(blind_run, CLASSES, MODALITIES)[0])
    assert blind.usage[0].bits < 2 * blind.usage[0].chance_bits
    assert blind.usage[0].spread == pytest.approx(blind.usage[0].chance_spread, rel=0.15)
    assert blind.comparisons[1].p > 0.05
    assert blind.subsets == ()
    folder = tmp_path / "page"
    folder.mkdir()
    report(blind_run).write(folder)
    text = (folder / "page.html").read_text()
    assert "close to constant</span>rgb" in text
    assert "adaptive</span>" not in text
    assert "against price" not in text  # one price only
    assert "Videos with and without sound" not in text


def test_a_policy_that_always_does_the_same_is_named(tmp_path):
    made = make(videos=60)
    whole = evaluation(made, 0.3)
    used = made.available.copy()
    used[:, :, 0] = False
    constant = replace(
        whole,
        scores=softmax((used[..., None] * made.scores).sum((1, 2)) / SEGMENTS),
        extras={**whole.extras, "choices": used, "gmac": used.sum(axis=1) @ COST + SEGMENTS * POLICY},
    )
    folder = tmp_path / "page"
    folder.mkdir()
    report({"adamml_eval": (write_run(tmp_path / "d" / "adamml_eval" / "0.3", constant, 0.3),)}).write(folder)
    text = (folder / "page.html").read_text()
    assert "never used</span>rgb is used in 0.0 % of the segments;" in text
    assert "always used</span>audio" in text
    assert "(100.0 % of those that have it)" in text


def test_usage_by_class_and_subsets_by_hand(runs):
    found = Findings(read_evaluations(runs, CLASSES, MODALITIES)[0])
    segments = found.evaluated.segments
    usage_CK, count_C = found.by_class
    rows = segments.label == 5
    assert count_C[5] == rows.sum()
    assert usage_CK[5, 0] == pytest.approx(segments.choices_NSK[rows, :, 0].mean())
    assert usage_CK[:4, 0].max() < usage_CK[4:8, 0].min()  # pictures are for the picture classes
    (with_name, with_count, _, _), (_, without_count, point, _) = found.subsets
    assert with_name == "with sound"
    assert with_count + without_count == 400
    assert point.low < point.top1 < point.high
    assert found.evaluated.scores_differ < 1e-3
    assert found.evaluated.costs_differ < 1e-6


def test_binomial():
    assert binomial(2, 0.25) == pytest.approx([0.5625, 0.375, 0.0625])
    assert binomial(3, 0.0) == pytest.approx([1, 0, 0, 0])


def test_scores_of_another_model_are_announced(runs, tmp_path):
    """Control of the check that curves belong to the model: the scores of shuffled videos."""
    made = make()
    mine = evaluation(made, 0.3)
    other = replace(mine, scores=mine.scores[::-1].copy())
    root = tmp_path / "sounds" / "adamml_eval"
    folder = tmp_path / "page"
    folder.mkdir()
    report({"adamml_eval": (write_run(root / "0.3", other, 0.3),)}).write(folder)
    said = "Curves and controls do not belong to this model"
    assert said in (folder / "page.html").read_text()
    report({"adamml_eval": runs["adamml_eval"][:1]}).write(folder)
    assert said not in (folder / "page.html").read_text()


def test_several_classes_per_video(tmp_path):
    made = make(videos=120)
    whole = evaluation(made, 0.3)
    hot = np.zeros((120, 12), np.float32)
    hot[np.arange(120), made.label] = 1
    hot[::3, 0] = 1
    folder = tmp_path / "page"
    folder.mkdir()
    run = write_run(tmp_path / "clips" / "adamml_eval" / "0.3", replace(whole, label=hot), 0.3)
    figures = report({"adamml_eval": (run,)}).write(folder)
    assert 0 < figures["test/map"] <= 1
    assert "test/top1" not in figures
    assert 0 < figures["test/best_top1"] <= 1
    text = (folder / "page.html").read_text()
    assert "Accuracy is mAP on the test split" in text
    assert "no test</span>" in text


def test_four_hundred_classes_are_drawn(tmp_path):
    names = tuple(f"a class with a rather long name <{i}>" for i in range(400))
    made = make(videos=300, classes=400)
    folder = tmp_path / "page"
    folder.mkdir()
    run = write_run(tmp_path / "many" / "adamml_eval" / "1", evaluation(made, 1.0, classes=names), 1.0)
    report({"adamml_eval": (run,)}, classes=names).write(folder)
    text = (folder / "page.html").read_text()
    assert f"&lt;{made.label[0]}&gt;" in text
    assert f"<{made.label[0]}>" not in text
    left_out = sorted(set(range(400)) - set(made.label.tolist()))  # without a video
    assert f"&lt;{left_out[0]}&gt;" not in text


def test_missing_and_foreign_results_are_named(runs, tmp_path):
    good = runs["adamml_eval"]
    with pytest.raises(RecordError, match="no instance of adamml_eval"):
        report({"adamml_eval": ()}).write(tmp_path)
    with pytest.raises(RecordError, match="no instance of adamml_eval"):
        report({}).write(tmp_path)
    with pytest.raises(RecordError, match="'movinet_eval'"):
        report({"movinet_eval": good}).write(tmp_path)
    with pytest.raises(RecordError, match=r"0.7/config.json is missing; run adamml_eval again"):
        report({"adamml_eval": (*good, tmp_path / "0.7")}).write(tmp_path)
    with pytest.raises(RecordError, match="names other classes than the data set"):
        report(runs, classes=CLASSES[:-1]).write(tmp_path)
    with pytest.raises(RecordError, match=r"its modalities are \['rgb', 'audio'\], the report's \['audio', 'rgb'\]"):
        report(runs, modalities=("audio", "rgb")).write(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda run: (run / "predictions.npz").unlink(), "predictions.npz is missing"),
        (lambda run: (run / "metrics.json").write_text("{}"), "lacks the field 'test/gmac_rgb'"),
        (lambda run: (run / "metrics.json").write_text("nothing"), "metrics.json is no JSON"),
        (lambda run: (run / "config.json").write_text('{"data": {}}'), "lacks the field 'model'"),
        (lambda run: without(run, "extras", "use_logits"), "lack extra/use_logits"),
        (lambda run: without(run, "arms", "audio"), "lacks the arms audio"),
    ],
)
def test_damaged_evaluations_are_named(tmp_path, damage, said):
    run = write_run(tmp_path / "d" / "adamml_eval" / "0.3", evaluation(make(videos=12), 0.3), 0.3)
    damage(run)
    with pytest.raises(RecordError, match=said) as error:
        read_evaluations({"adamml_eval": (run,)}, CLASSES, MODALITIES)
    assert str(run) in str(error.value)


def without(run: Path, kind: str, name: str) -> None:
    predictions = Predictions.load(run / "predictions.npz")
    left = {key: value for key, value in getattr(predictions, kind).items() if key != name}
    replace(predictions, **{kind: left}).save(run / "predictions.npz")


def test_evaluations_of_different_videos_are_refused(runs, tmp_path):
    other = evaluation(make(videos=399), 0.7)
    run = write_run(tmp_path / "sounds" / "adamml_eval" / "0.7", other, 0.7)
    with pytest.raises(RecordError, match="1 belong to one only, such as 'video-00399'"):
        read_evaluations({"adamml_eval": (*runs["adamml_eval"], run)}, CLASSES, MODALITIES)
