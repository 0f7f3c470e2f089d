"""Ensembles against hand-made mixtures: what each rule computes, that fitted ones are honest, and what is refused."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from infra.settings import Settings
from training.autovideo import catalogue as catalogue_module
from training.autovideo.evaluation import ensemblers
from training.autovideo.evaluation.ensembling import fit_stack, fit_weights, folds_of, stack_inputs
from training.autovideo.evaluation.figures import FigureError
from training.autovideo.values import Context, Predictions
from training.core.config import ConfigError
from training.core.evaluate import Predictions as PredictionArrays

CLASSES = ("a", "b", "c")


@pytest.fixture
def context(tmp_path: Path) -> Context:
    (tmp_path / "work").mkdir()
    return Context.alone("both", 0, tmp_path / "work", Settings(root=tmp_path))


def softmax(logits: NDArray[Any]) -> NDArray[Any]:
    rows = np.exp(logits - logits.max(axis=1, keepdims=True))
    return rows / rows.sum(axis=1, keepdims=True)


def member(label: NDArray[Any], skill: float, seed: int, classes: int = 3) -> NDArray[Any]:
    logits = np.random.default_rng(seed).normal(size=(len(label), classes))
    logits[np.arange(len(label)), label] += skill
    return softmax(logits).astype(np.float32)


def write(
    folder: Path, splits: dict[str, tuple[Any, Any]], *, classes: Any = CLASSES, gmac: float | None = 2.0, **more: Any
) -> Predictions:
    for split, (label, scores) in splits.items():
        keys = np.asarray(more.get("keys") or [f"{split}-{i:04d}" for i in range(len(label))])
        order = np.random.default_rng(len(str(folder))).permutation(len(keys))
        extras = {name: value[order] for name, value in more.get("extras", {}).items()}
        arrays = PredictionArrays(keys[order], label[order], scores[order], {}, extras, classes)
        arrays.save(folder / f"{split}.npz")
    files = {split: folder / f"{split}.npz" for split in splits}
    return Predictions(files, classes, dict.fromkeys(splits, more.get("mark", "m")), str(folder), gmac)


def ensemble(name: str, members: tuple[Predictions, ...], context: Context, **settings: Any) -> Predictions:
    cls = getattr(ensemblers, name)
    step = cls(cls.Config(**settings))
    state = step.fit({"predictions": members}, context)
    result = step.produce({"predictions": members}, state, context)["predictions"]
    assert isinstance(result, Predictions)
    return result


def scores_of(value: Predictions, split: str = "val") -> NDArray[Any]:
    arrays = PredictionArrays.load(value.files[split])
    assert (np.sort(arrays.key) == arrays.key).all()
    return arrays.scores


def nll(scores: NDArray[Any], label: NDArray[Any]) -> float:
    return float(-np.log(np.maximum(scores[np.arange(len(label)), label], 1e-12)).mean())


# --- means --------------------------------------------------------------------------------------


def test_means_by_hand(tmp_path, context):
    label = np.array([0, 1])
    first = np.array([[0.8, 0.1, 0.1], [0.2, 0.4, 0.4]], np.float32)
    second = np.array([[0.2, 0.4, 0.4], [0.2, 0.4, 0.4]], np.float32)
    members = (
        write(tmp_path / "a", {"val": (label, first)}),
        write(tmp_path / "bb", {"val": (label, second)}, gmac=3.0),
    )
    found = ensemble("Mean", members, context)
    assert scores_of(found)[0] == pytest.approx([0.5, 0.25, 0.25])
    assert found.gmac == 5.0
    assert found.classes == CLASSES
    assert found.fingerprints == {"val": "m"}
    logs = scores_of(ensemble("Mean", members, context, of="logits"))
    expected = np.sqrt(first[0] * second[0])
    assert logs[0] == pytest.approx(expected / expected.sum(), abs=1e-6)
    assert logs[1] == pytest.approx(first[1], abs=1e-6)
    weighted = scores_of(ensemble("Weighted", members, context, weights=(3, 1)))
    assert weighted[0] == pytest.approx(0.75 * first[0] + 0.25 * second[0])
    assert weighted[0] != pytest.approx([0.5, 0.25, 0.25])


def test_several_labels_are_averaged_class_by_class(tmp_path, context):
    hot = np.array([[1, 1, 0]])
    one, two = np.array([[0.9, 0.8, 0.1]], np.float32), np.array([[0.5, 0.8, 0.5]], np.float32)
    members = (write(tmp_path / "a", {"val": (hot, one)}), write(tmp_path / "b", {"val": (hot, two)}))
    assert scores_of(ensemble("Mean", members, context))[0] == pytest.approx([0.7, 0.8, 0.3])
    # Mean of logits: odds are multiplied and the root is taken; 9 and 1 give 3.
    assert scores_of(ensemble("Mean", members, context, of="logits"))[0] == pytest.approx([0.75, 0.8, 0.25])
    with pytest.raises(FigureError, match="learns from samples of one label"):
        ensemble("Weighted", members, context)


def test_costs_of_videos_are_summed_and_unknown_ones_stay_unknown(tmp_path, context):
    label = np.arange(6) % 3
    scores = member(label, 1, 0)
    extras = {"gmac": np.arange(6.0), "group": np.arange(6) // 2}
    with_costs = write(tmp_path / "a", {"val": (label, scores)}, extras=extras)
    found = ensemble("Mean", (with_costs, with_costs), context)
    assert PredictionArrays.load(found.files["val"]).extras["gmac"].tolist() == [0, 2, 4, 6, 8, 10]
    without = write(tmp_path / "b", {"val": (label, scores)}, gmac=None)
    found = ensemble("Mean", (with_costs, without), context)
    assert found.gmac is None
    assert "gmac" not in PredictionArrays.load(found.files["val"]).extras


def test_only_splits_of_all_members_are_written_and_the_others_named(tmp_path, context, caplog):
    label = np.arange(9) % 3
    first = write(tmp_path / "a", {"val": (label, member(label, 1, 0)), "test": (label, member(label, 1, 1))})
    second = write(tmp_path / "b", {"val": (label, member(label, 1, 2))})
    with caplog.at_level(logging.WARNING):
        assert set(ensemble("Mean", (first, second), context).files) == {"val"}
    assert "not all members have the splits ['test']" in caplog.text
    only = write(tmp_path / "c", {"test": (label, member(label, 1, 2))})
    with pytest.raises(ConfigError, match="no split in common"):
        ensemble("Mean", (second, only), context)


def test_the_digest_is_that_of_the_content(tmp_path, context):
    label = np.arange(9) % 3
    pair = tuple(write(tmp_path / name, {"val": (label, member(label, 1, seed))}) for seed, name in enumerate("ab"))
    first = ensemble("Mean", pair, context)
    assert ensemble("Mean", pair, context).digest == first.digest
    assert ensemble("Mean", pair, context, of="logits").digest != first.digest


# --- fitted weights -----------------------------------------------------------------------------


def test_fitted_weights_have_the_least_loss_of_all():
    label = np.random.default_rng(0).integers(3, size=400)
    scores = np.stack([member(label, 2.0, 1), member(label, 1.0, 2), np.full((400, 3), 1 / 3)]).astype(np.float64)
    weight = fit_weights(scores, label)
    assert weight.sum() == pytest.approx(1)
    assert (weight >= 0).all()
    assert weight[0] > weight[1] > weight[2]
    best = nll(np.einsum("m,mnk->nk", weight, scores), label)
    steps = np.linspace(0, 1, 21)
    grid = [(a, b, 1 - a - b) for a in steps for b in steps if a + b <= 1 + 1e-9]
    assert best <= min(nll(np.einsum("m,mnk->nk", np.array(w), scores), label) for w in grid) + 1e-6
    assert best < nll(scores.mean(axis=0), label) - 0.01  # equal weights are worse


def test_a_useless_member_gets_no_weight():
    label = np.random.default_rng(0).integers(3, size=300)
    good = member(label, 4.0, 1).astype(np.float64)
    wrong = softmax(-4 * np.log(good + 1e-6))
    assert fit_weights(np.stack([good, wrong]), label)[1] < 0.02


# --- honesty of what was fitted -----------------------------------------------------------------


def test_stacking_is_honest_on_the_split_that_it_learned_from(tmp_path, context):
    """Members of noise: a stack that is judged on its own samples seems to know something, a cross-fitted one not."""
    rng = np.random.default_rng(1)
    splits = {split: rng.integers(3, size=90) for split in ("val", "test")}
    members = tuple(
        write(
            tmp_path / f"m{i}",
            {split: (label, member(label, 0.0, 10 * i + len(split))) for split, label in splits.items()},
        )
        for i in range(8)
    )
    accuracy = {}
    for folds in (1, 5):
        found = ensemble("Stacking", members, context, folds=folds, strength=10.0)
        for split, label in splits.items():
            accuracy[folds, split] = (scores_of(found, split).argmax(axis=1) == label).mean()
    assert accuracy[1, "val"] > 0.5
    assert accuracy[5, "val"] < 0.45
    assert accuracy[1, "test"] == accuracy[5, "test"]  # the rule for new samples is the same
    assert accuracy[5, "test"] < 0.45


def test_stacking_learns_what_a_mean_cannot(tmp_path, context):
    """One member confuses two classes always: it is the better for being read the other way round."""
    rng = np.random.default_rng(3)
    splits = {split: rng.integers(3, size=300) for split in ("val", "test")}
    swap = np.array([1, 0, 2])
    first = write(tmp_path / "a", {s: (y, member(swap[y], 3.0, len(s))) for s, y in splits.items()})
    second = write(tmp_path / "b", {s: (y, member(y, 0.3, 7 + len(s))) for s, y in splits.items()})
    accuracy = {
        name: (scores_of(ensemble(name, (first, second), context), "test").argmax(axis=1) == splits["test"]).mean()
        for name in ("Mean", "Weighted", "Stacking")
    }
    assert accuracy["Stacking"] > 0.85
    assert accuracy["Mean"] < 0.6
    assert accuracy["Weighted"] < 0.6


def test_a_fold_is_predicted_without_itself(tmp_path, context):
    """Labels of one fold are changed: predictions of that fold stay, those of others move."""
    label = np.random.default_rng(0).integers(3, size=60)
    scores = (member(label, 1.0, 1), member(label, 1.0, 2))
    keys = [f"val-{i:04d}" for i in range(60)]
    fold = folds_of(keys, 5)
    changed = np.where(fold == 2, (label + 1) % 3, label)
    results = []
    for number, target in enumerate((label, changed)):
        pair = tuple(write(tmp_path / f"{number}{i}", {"val": (target, each)}) for i, each in enumerate(scores))
        results.append(scores_of(ensemble("Stacking", pair, context, strength=1.0)))
    moved = np.abs(results[0] - results[1]).max(axis=1) > 1e-4
    assert not moved[fold == 2].any()
    assert moved[fold != 2].all()


def test_folds_keep_groups_whole_and_depend_on_their_set_only():
    groups = [f"video-{i // 4}" for i in range(80)]
    fold = folds_of(groups, 5)
    assert all(len({fold[i] for i in range(80) if groups[i] == name}) == 1 for name in groups)
    assert np.bincount(fold).tolist() == [16] * 5
    order = np.random.default_rng(0).permutation(80)
    assert (folds_of([groups[i] for i in order], 5) == fold[order]).all()
    with pytest.raises(FigureError, match="3 groups of samples cannot be divided into 5 folds"):
        folds_of(["a", "b", "c"], 5)


def test_groups_in_the_predictions_are_kept_whole(tmp_path, context):
    label = np.random.default_rng(0).integers(3, size=40)
    extras = {"group": np.array([f"g{i // 10}" for i in range(40)])}
    pair = tuple(write(tmp_path / n, {"val": (label, member(label, 1, i))}, extras=extras) for i, n in enumerate("ab"))
    step = ensemblers.Stacking(ensemblers.StackingConfig(folds=4))
    state = step.fit({"predictions": pair}, context)
    assert state is not None
    assert all(len({state.fold[f"val-{i:04d}"] for i in range(g, g + 10)}) == 1 for g in range(0, 40, 10))
    with pytest.raises(FigureError, match="4 groups"):
        ensemble("Stacking", pair, context, folds=5)


def test_a_class_without_samples_keeps_what_the_members_say():
    label = np.random.default_rng(0).choice([0, 2], size=80)
    scores = np.stack([member(label, 1, 1, classes=4), member(label, 1, 2, classes=4)]).astype(np.float64)
    stack = fit_stack(scores, label, 1.0)
    result = stack(scores)
    assert stack.present.tolist() == [0, 2]
    assert result.sum(axis=1) == pytest.approx(np.ones(80), abs=1e-6)
    assert result[:, [1, 3]] == pytest.approx(scores.mean(axis=0)[:, [1, 3]], abs=1e-6)
    model = LogisticRegression(C=1.0, max_iter=2000).fit(stack_inputs(scores), label)
    share = result[:, 2] / result[:, [0, 2]].sum(axis=1)
    assert share == pytest.approx(model.predict_proba(stack_inputs(scores))[:, 1], abs=1e-6)
    with pytest.raises(FigureError, match="at least two classes"):
        fit_stack(scores, np.zeros(80, np.int64), 1.0)


@pytest.mark.parametrize("name", ["Weighted", "Stacking"])
def test_what_was_learned_is_saved_without_pickle(tmp_path, context, name):
    label = np.random.default_rng(0).integers(3, size=60)
    pair = tuple(write(tmp_path / n, {"val": (label, member(label, i + 1, i))}) for i, n in enumerate("ab"))
    cls = getattr(ensemblers, name)
    step = cls(cls.Config())
    state = step.fit({"predictions": pair}, context)
    folder = tmp_path / "state"
    folder.mkdir()
    step.save(state, folder)
    assert {path.suffix for path in folder.iterdir()} <= {".json", ".safetensors"}
    again = step.load(folder)
    wanted = scores_of(step.produce({"predictions": pair}, state, context)["predictions"])
    assert (scores_of(step.produce({"predictions": pair}, again, context)["predictions"]) == wanted).all()
    # A changed file changes the result: the state is what was read.
    if name == "Weighted":
        values = json.loads((folder / "weights.json").read_text())
        values["parts"] = [[1.0, 0.0]] * 5
        (folder / "weights.json").write_text(json.dumps(values))
        other = scores_of(step.produce({"predictions": pair}, step.load(folder), context)["predictions"])
        assert not np.allclose(other, wanted)


# --- what is refused ----------------------------------------------------------------------------


def test_members_that_do_not_fit_are_refused(tmp_path, context):
    label = np.arange(12) % 3
    first = write(tmp_path / "a", {"val": (label, member(label, 1, 0))})
    cases: list[tuple[dict[str, Any], str]] = [
        ({"keys": [f"x{i}" for i in range(12)]}, "other samples of split 'val'"),
        ({"classes": ("a", "b", "d")}, "other classes than the first: 'c' and 'd'"),
        ({"mark": "n"}, "different data of split 'val'"),
    ]
    for number, (change, words) in enumerate(cases):
        other = write(tmp_path / f"o{number}", {"val": (label, member(label, 1, 1))}, **change)
        for name in ("Mean", "Stacking"):
            with pytest.raises(FigureError, match=words):
                ensemble(name, (first, other), context)
    logits = write(tmp_path / "l", {"val": (label, 5 * member(label, 1, 1))})
    with pytest.raises(FigureError, match=r"member 2: .*are no probabilities"):
        ensemble("Mean", (first, logits), context)
    with pytest.raises(ConfigError, match="an ensemble of 1"):
        ensemble("Mean", (first,), context)
    with pytest.raises(ConfigError, match="3 weights for 2 members"):
        ensemble("Weighted", (first, first), context, weights=(1, 1, 1))
    with pytest.raises(ConfigError, match="0 or more and not all 0"):
        ensemble("Weighted", (first, first), context, weights=(1, -1))
    with pytest.raises(FigureError, match=r"no split 'train' \(they have: val\)"):
        ensemble("Stacking", (first, first), context, fit_on="train")


def test_they_are_in_the_catalogue(monkeypatch):
    monkeypatch.setattr(catalogue_module, "MODULES", ("training.autovideo.evaluation.ensemblers",))
    catalogue_module.catalogue.cache_clear()
    try:
        found = {name: item for name, item in catalogue_module.catalogue().items() if name.startswith("ensembler/")}
        assert set(found) == {"ensembler/mean", "ensembler/weighted", "ensembler/stacking"}
        assert all(item.inputs["predictions"].several for item in found.values())
    finally:
        catalogue_module.catalogue.cache_clear()
