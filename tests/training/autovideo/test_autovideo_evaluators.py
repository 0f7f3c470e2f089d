"""Figures against hand-made cases and scikit-learn, and what is refused."""

import importlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn import metrics as sk

from infra.settings import Settings
from training.autovideo import catalogue as catalogue_module
from training.autovideo.evaluation import evaluators
from training.autovideo.evaluation.figures import (
    FigureError,
    bootstrap_accuracy,
    calibration_error,
    equal_mass_bins,
    equal_width_bins,
    mcnemar,
    reliability,
)
from training.autovideo.values import Clips, Context, Metrics, Predictions, Report, Shards
from training.core.config import ConfigError
from training.core.evaluate import Predictions as PredictionArrays
from training.core.metrics import classification_metrics

CLASSES = ("jump", "7", "wave arms", "run", "sit", "stand", "fall")
"""Names with gaps and digits; the class `sit` (index 4) has no sample below."""


def make_scores(count: int = 120, classes: int = len(CLASSES), absent: int = 4) -> tuple[Any, Any]:
    rng = np.random.default_rng(5)
    label = rng.choice([k for k in range(classes) if k != absent], size=count)
    logits = rng.normal(size=(count, classes))
    logits[np.arange(count), label] += 1.2
    scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return label, scores.astype(np.float32)


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return Context.alone("judge", 3, tmp_path / "work", Settings(root=tmp_path))


def write(
    folder: Path,
    label: NDArray[Any],
    scores: NDArray[Any],
    *,
    split: str = "val",
    classes: tuple[str, ...] = CLASSES,
    keys: list[str] | None = None,
    extras: dict[str, Any] | None = None,
    mark: str = "data",
) -> Predictions:
    keys = keys if keys is not None else [f"clip-{i:04d}" for i in range(len(label))]
    arrays = PredictionArrays(np.asarray(keys, dtype=str), label, scores, {}, extras or {}, classes)
    arrays.save(folder / f"{split}.npz")
    return Predictions({split: folder / f"{split}.npz"}, classes, {split: mark}, "x", 1.5)


def judge(name: str, inputs: dict[str, Any], context: Context, **settings: Any) -> Metrics:
    cls = getattr(evaluators, name)
    result = cls(cls.Config(**settings)).produce(inputs, None, context)["metrics"]
    assert isinstance(result, Metrics)
    return result


@pytest.fixture
def predictions(tmp_path: Path) -> Predictions:
    return write(tmp_path / "run", *make_scores())


# --- figures ------------------------------------------------------------------------------------


def test_topk_is_that_of_scikit_learn_and_of_training(predictions, context):
    label, scores = make_scores()
    found = judge("TopK", {"predictions": predictions}, context, ks=(1, 2, 5)).values
    core = classification_metrics(scores, label, "val")
    for name in ("val/top1", "val/top1_low", "val/top1_high", "val/top5", "val/majority", "val/samples"):
        assert found[name] == pytest.approx(core[name], abs=1e-12), name
    for k in (1, 2, 5):
        expected = sk.top_k_accuracy_score(label, scores, k=k, labels=range(len(CLASSES)))
        assert found[f"val/top{k}"] == pytest.approx(expected)
    assert found["val/top1"] < found["val/top2"] < found["val/top5"]


def test_constant_scores_are_no_better_than_their_first_column(tmp_path, context):
    label = np.array([0, 1, 2, 3, 4, 5])
    value = write(tmp_path, label, np.full((6, 7), 1 / 7, np.float32))
    found = judge("TopK", {"predictions": value}, context, ks=(1, 2)).values
    assert found["val/top1"] == pytest.approx(1 / 6)
    assert found["val/top2"] == pytest.approx(2 / 6)


def test_a_k_that_says_nothing_is_left_out_and_named(tmp_path, context):
    label, scores = make_scores(classes=4, absent=2)
    found = judge("TopK", {"predictions": write(tmp_path, label, scores, classes=CLASSES[:4])}, context)
    assert "val/top5" not in found.values
    assert found.tables["val/left_out"] == ["top5: there are 4 classes"]
    assert found.tables["val/absent"] == ["wave arms"]


def test_mean_class_and_per_class_are_those_of_scikit_learn(predictions, context):
    label, scores = make_scores()
    named = scores.argmax(axis=1)
    present = sorted(set(label.tolist()))
    precision, recall, f1, support = sk.precision_recall_fscore_support(label, named, labels=present, zero_division=0)
    found = judge("PerClass", {"predictions": predictions}, context)
    rows = {row["name"]: row for row in found.tables["val/per_class"]}
    for place, index in enumerate(present):
        row = rows[CLASSES[index]]
        assert (row["recall"], row["f1"]) == pytest.approx((recall[place], f1[place]))
        assert row["precision"] == pytest.approx(precision[place])
        assert row["support"] == support[place]
    assert rows["sit"]["support"] == 0
    assert rows["sit"]["recall"] is None
    assert found.values["val/macro_f1"] == pytest.approx(f1.mean())
    assert found.values["val/mean_class_precision"] == pytest.approx(precision.mean())
    mean = judge("MeanClass", {"predictions": predictions}, context).values
    core = classification_metrics(scores, label, "val")
    assert mean["val/mean_class_accuracy"] == pytest.approx(core["val/mean_class_accuracy"])
    assert mean["val/classes_present"] == len(present) == len(CLASSES) - 1
    # Averaging the absent class as 0 would give another number.
    assert mean["val/mean_class_accuracy"] != pytest.approx(recall.sum() / len(CLASSES))


def test_a_class_that_is_never_named_has_no_precision(tmp_path, context):
    scores = np.eye(3, dtype=np.float32)[[0, 0, 1, 1]]
    found = judge(
        "PerClass", {"predictions": write(tmp_path, np.array([0, 0, 1, 2]), scores, classes=CLASSES[:3])}, context
    )
    last = found.tables["val/per_class"][2]
    assert last == {"name": "wave arms", "support": 1, "named": 0, "recall": 0.0, "precision": None, "f1": 0.0}
    assert found.values["val/mean_class_precision"] == pytest.approx((1 + 0.5 + 0) / 3)


def test_map_of_several_labels_and_of_one(tmp_path, predictions, context):
    rng = np.random.default_rng(0)
    hot = (rng.random((60, 7)) < 0.3).astype(np.int64)
    hot[:, 4] = 0
    scores = np.round(rng.random((60, 7)) * 0.6 + 0.3 * hot, 1).astype(np.float32)  # rounded: with ties
    found = judge("MeanAveragePrecision", {"predictions": write(tmp_path, hot, scores)}, context)
    present = [k for k in range(7) if k != 4]
    expected = [sk.average_precision_score(hot[:, k], scores[:, k]) for k in present]
    assert found.values["val/map"] == pytest.approx(np.mean(expected))
    table = found.tables["val/average_precision"]
    assert [table[CLASSES[k]] for k in present] == pytest.approx(expected)
    assert table["sit"] is None
    label, single = make_scores()
    one = judge("MeanAveragePrecision", {"predictions": predictions}, context).values["val/map"]
    assert one == pytest.approx(np.mean([sk.average_precision_score(label == k, single[:, k]) for k in present]))


def test_confusion_is_that_of_scikit_learn_with_a_page(predictions, context):
    label, scores = make_scores()
    cls = evaluators.Confusion
    made = cls(cls.Config()).produce({"predictions": predictions}, None, context)
    metrics, page = made["metrics"], made["page"]
    assert isinstance(metrics, Metrics)
    assert isinstance(page, Report)
    expected = sk.confusion_matrix(label, scores.argmax(axis=1), labels=range(len(CLASSES)))
    assert metrics.tables["val/confusion"] == expected.tolist()
    assert metrics.tables["val/confusion"] != expected.T.tolist()
    assert metrics.tables["val/classes"] == list(CLASSES)
    text = (page.folder / "page.html").read_text()
    assert "wave arms" in text
    assert text.count('<rect class="cell"') == len(CLASSES) ** 2


def test_calibration_of_a_hand_made_case():
    confidence = np.array([0.55, 0.55, 0.95, 0.95])
    correct = np.array([True, False, True, True])
    rows = reliability(confidence, correct, equal_width_bins(confidence, 10))
    assert [row["count"] for row in rows] == [2, 2]
    assert calibration_error(rows) == pytest.approx(0.5 * 0.05 + 0.5 * 0.05)
    # One bin of everything hides what two opposite errors have in common.
    assert calibration_error(reliability(confidence, correct, np.zeros(4, np.int64))) == pytest.approx(0.0)


def test_bins_of_equal_mass_keep_ties_together_in_any_order():
    confidence = np.array([0.9, 0.2, 0.9, 0.4, 0.9, 0.6, 0.9, 0.1])
    found = equal_mass_bins(confidence, 4)
    assert len(set(found[confidence == 0.9].tolist())) == 1
    order = np.random.default_rng(0).permutation(8)
    assert (equal_mass_bins(confidence[order], 4) == found[order]).all()
    assert np.bincount(equal_mass_bins(np.linspace(0.1, 0.9, 12), 4)).tolist() == [3, 3, 3, 3]


def test_calibration_figures_are_those_of_scikit_learn_and_of_training(predictions, tmp_path, context):
    label, scores = make_scores()
    found = judge("Calibration", {"predictions": predictions}, context)
    core = classification_metrics(scores, label, "val")
    assert found.values["val/ece"] == pytest.approx(core["val/ece"])
    assert found.values["val/nll"] == pytest.approx(core["val/nll"])
    assert found.values["val/nll"] == pytest.approx(
        sk.log_loss(label, scores.astype(float) / scores.astype(float).sum(axis=1, keepdims=True), labels=range(7)),
        abs=1e-5,
    )
    assert found.values["val/ece_mass"] != pytest.approx(found.values["val/ece"], abs=1e-6)
    for name in ("val/reliability", "val/reliability_mass"):
        assert sum(row["count"] for row in found.tables[name]) == len(label)
    two = scores[:, :2].astype(float) / scores[:, :2].sum(axis=1, keepdims=True)
    hit = np.arange(len(two)) % 3 == 0
    value = write(tmp_path / "two", hit.astype(np.int64), two, classes=("no", "yes"))
    brier = judge("Calibration", {"predictions": value}, context).values["val/brier"]
    assert brier == pytest.approx(2 * sk.brier_score_loss(hit, two[:, 1]))
    # Surer answers with the same classes are worse calibrated.
    sharp = scores.astype(float) ** 6
    sharp /= sharp.sum(axis=1, keepdims=True)
    worse = judge("Calibration", {"predictions": write(tmp_path / "sharp", label, sharp)}, context).values
    assert worse["val/ece"] > found.values["val/ece"] + 0.1


# --- pairs --------------------------------------------------------------------------------------


def test_mcnemar_by_hand():
    first = np.array([True] * 6 + [False] * 6)
    second = np.array([True] * 4 + [False] * 2 + [True] * 6)
    found = mcnemar(first, second)
    assert (found["gained"], found["lost"], found["both_right"], found["both_wrong"]) == (6, 2, 4, 0)
    # Binomial(8, 1/2): 1, 8, 28 of 256 up to 2.
    assert found["p_exact"] == pytest.approx(2 * 37 / 256)
    assert found["p_mid"] == pytest.approx(2 * 37 / 256 - 28 / 256)
    assert found["difference"] == pytest.approx(4 / 12)
    even = mcnemar(np.array([True, False]), np.array([False, True]))
    assert (even["p_exact"], even["p_mid"]) == (1.0, pytest.approx(1 - 0.5 * 0.5))
    same = mcnemar(first, first)
    assert (same["p_exact"], same["p_mid"], same["difference"]) == (1.0, 1.0, 0.0)


def test_runs_are_paired_by_key_not_by_place(tmp_path, context):
    label, scores = make_scores(40)
    keys = [f"clip-{i}" for i in range(40)]
    first = write(tmp_path / "a", label, scores, keys=keys)
    order = np.random.default_rng(1).permutation(40)
    again = write(tmp_path / "b", label[order], scores[order], keys=[keys[i] for i in order])
    found = judge("McNemar", {"predictions": (first, again)}, context).values
    assert (found["val/gained"], found["val/lost"], found["val/p_exact"]) == (0, 0, 1.0)
    better = scores.copy()
    better[np.arange(40), label] += 0.5
    better /= better.sum(axis=1, keepdims=True)
    other = write(tmp_path / "c", label[order], better[order], keys=[keys[i] for i in order])
    found = judge("McNemar", {"predictions": (first, other)}, context)
    assert found.values["val/gained"] > 5
    assert found.values["val/lost"] == 0
    assert 0 < found.values["val/difference_low"] < found.values["val/difference_high"]
    assert len(found.tables["val/gained"]) == found.values["val/gained"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"keys": [f"other-{i}" for i in range(20)]}, "other samples.*such as 'clip-0000'"),
        ({"mark": "other data"}, "different data"),
        ({"classes": ("jump", "8", *CLASSES[2:])}, "other classes than the first: '7' and '8'"),
    ],
)
def test_runs_that_cannot_be_paired_are_refused(tmp_path, context, change, words):
    label, scores = make_scores(20)
    both = (write(tmp_path / "a", label, scores), write(tmp_path / "b", label, scores, **change))
    with pytest.raises(FigureError, match=words):
        judge("McNemar", {"predictions": both}, context)


def test_other_labels_are_refused(tmp_path, context):
    label, scores = make_scores(20)
    both = (write(tmp_path / "a", label, scores), write(tmp_path / "b", (label + 1) % 7, scores))
    with pytest.raises(FigureError, match="other labels of split 'val'"):
        judge("McNemar", {"predictions": both}, context)


# --- intervals ----------------------------------------------------------------------------------


def test_groups_widen_the_interval():
    """Ten clips of one video that are right or wrong together are one observation."""
    right = np.random.default_rng(2).random(40) < 0.6
    correct = np.repeat(right, 10)
    group = [f"video-{i // 10}" for i in range(400)]
    settings = {"resamples": 4000, "alpha": 0.05, "seed": 1}
    alone, together = bootstrap_accuracy(correct, None, **settings), bootstrap_accuracy(correct, group, **settings)
    width = [high - low for low, high in (alone, together)]
    assert width[1] / width[0] == pytest.approx(math.sqrt(10), rel=0.15)
    normal = 2 * 1.96 * math.sqrt(right.mean() * (1 - right.mean()) / 400)
    assert width[0] == pytest.approx(normal, rel=0.1)
    assert bootstrap_accuracy(correct, group, **settings) == together


def test_groups_come_from_the_file_or_from_the_shards(tmp_path, tiny_shards, context):
    keys = [f"clip-{i:03d}" for i in range(24, 34)]
    label = np.arange(24, 34) % 3
    scores = np.eye(3, dtype=np.float32)[np.where(np.arange(10) < 6, label, (label + 1) % 3)]
    classes = ("blue", "green", "red")
    plain = write(tmp_path / "a", label, scores, keys=keys, classes=classes)
    grouped = write(tmp_path / "b", label, scores, keys=keys, classes=classes, extras={"group": np.arange(10) // 5})
    found = judge("Confidence", {"predictions": grouped}, context)
    assert found.values["val/groups"] == 2
    assert found.tables["val/drawn"] == "group"
    found = judge("Confidence", {"predictions": plain}, context)
    assert found.tables["val/drawn"] == "sample"
    assert found.values["val/top1_boot_low"] < 0.6 < found.values["val/top1_boot_high"]
    with pytest.raises(ConfigError, match=r"judge: the groups of split 'val' are not known"):
        judge("Confidence", {"predictions": plain}, context, by="group")
    clips = Clips(Shards(tiny_shards, "tiny", {}, classes), {})
    found = judge("Confidence", {"predictions": plain, "clips": clips}, context, by="group")
    assert found.values["val/groups"] == 10  # of the tiny set each clip is its own group


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["TopK", "MeanClass", "MeanAveragePrecision", "Calibration", "PerClass", "Confidence"])
def test_broken_predictions_are_refused_by_name(tmp_path, context, name):
    label, scores = make_scores(20)
    for change, words in (
        (("nan", 7), r"judge: split 'val': the scores of 1 of 20 samples are not finite, first of 'clip-0007'"),
        (("label", 9), r"label 99 of 'clip-0009' is none of the 7 classes"),
        (("empty", 0), r"split 'val' has no samples"),
    ):
        kind, row = change
        bad_label, bad_scores = label.copy(), scores.copy()
        if kind == "nan":
            bad_scores[row, 2] = np.nan
        elif kind == "label":
            bad_label[row] = 99
        else:
            bad_label, bad_scores = label[:0], scores[:0]
        with pytest.raises(FigureError, match=words):
            judge(name, {"predictions": write(tmp_path / kind, bad_label, bad_scores)}, context)
    with pytest.raises(FigureError, match=r"no split 'test' \(they have: val\)"):
        judge(name, {"predictions": write(tmp_path, label, scores)}, context, splits=("val", "test"))
    judge(name, {"predictions": write(tmp_path, label, scores)}, context)


def test_figures_of_one_label_refuse_several(tmp_path, context):
    hot = np.ones((5, 7), np.int64)
    value = write(tmp_path, hot, np.full((5, 7), 0.5, np.float32))
    for name in ("MeanClass", "PerClass", "Calibration"):
        with pytest.raises(FigureError, match="several labels per sample"):
            judge(name, {"predictions": value}, context)
    assert judge("TopK", {"predictions": value}, context).values["val/top1"] == 1.0


def test_logits_are_no_probabilities(tmp_path, context):
    label, _ = make_scores(10)
    value = write(tmp_path, label, np.random.default_rng(0).normal(size=(10, 7)))
    with pytest.raises(FigureError, match=r"are no probabilities.*apply softmax"):
        judge("Calibration", {"predictions": value}, context)


def test_exactly_one_way_is_connected(predictions, context):
    with pytest.raises(ConfigError, match="neither is connected"):
        judge("TopK", {}, context)
    with pytest.raises(ConfigError, match="both are connected"):
        judge("TopK", {"predictions": predictions, "model": predictions}, context)
    with pytest.raises(ConfigError, match="`views` is for a model"):
        judge("TopK", {"predictions": predictions}, context, views={"clips": 2})
    with pytest.raises(ConfigError, match="1 runs are connected, 2 are compared"):
        judge("McNemar", {"predictions": (predictions,)}, context)


def test_they_are_in_the_catalogue(monkeypatch):
    monkeypatch.setattr(catalogue_module, "MODULES", ("training.autovideo.evaluation.evaluators",))
    catalogue_module.catalogue.cache_clear()
    try:
        found = catalogue_module.catalogue()
        names = ("topk", "mean_class", "map", "confusion", "calibration", "per_class", "mcnemar", "confidence")
        assert {f"evaluator/{name}" for name in names} == {name for name in found if name.startswith("evaluator/")}
        for item in found.values():
            assert item.kind == "evaluator"
            assert item.describe()["config"]["splits"]["default"] == ("val",)
            importlib.import_module(item.__module__)
    finally:
        catalogue_module.catalogue.cache_clear()
