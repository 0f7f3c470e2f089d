"""Evaluators: figures of predictions, of a model, or of two runs on the same samples."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from data_specs.strict import Strict
from training.autovideo.primitive import Input, Port, Primitive, PrimitiveConfig, primitive, setting
from training.autovideo.values import Clips, Context, Metrics, Model, Predictions, Report, Value
from training.core.config import ConfigError

if TYPE_CHECKING:
    from training.autovideo.evaluation.figures import Scored

Split = Literal["train", "val", "test"]


class Views(Strict):
    """Views of a video at evaluation, whose scores are averaged."""

    clips: int = setting(1, help="Clips per video, evenly spaced.", ge=1, le=100)
    crops: Literal[1, 3] = setting(1, help="Crops per clip: the centre, or start, centre and end of the longer side.")


class EvaluatorConfig(PrimitiveConfig):
    """What all evaluators have."""

    splits: tuple[Split, ...] = setting(("val",), help="Splits that are judged.", min_length=1)
    views: Views | None = setting(None, help="Views per video; only with a model. None: as the model was trained.")


def predictions_of(
    inputs: Mapping[str, Any], config: Any, context: Context, *, runs: int = 1
) -> tuple[tuple[Predictions, ...], Clips | None]:
    """Return the predictions that a step judges, made with its model where it has one; and the clips, if connected.

    Args:
        inputs: of the step: `predictions`, or `model` with maybe `clips`.
        config: with `splits` and `views`.
        context: of the step.
        runs: how many are wanted.

    Raises:
        ConfigError: neither or both ways are connected, another number of runs, or views without a model.
    """
    given, models, clips = (inputs.get(name) for name in ("predictions", "model", "clips"))
    if (given is None) == (models is None):
        both = "both are" if given is not None else "neither is"
        raise ConfigError(
            f"step {context.step}: connect either `predictions` or `model` (with `clips` where other clips are wanted "
            f"than those of training); {both} connected"
        )
    found: Sequence[Any] = given if given is not None else models  # type: ignore[assignment]
    found = found if isinstance(found, tuple) else (found,)
    if len(found) != runs:
        raise ConfigError(f"step {context.step}: {len(found)} runs are connected, {runs} are compared")
    if given is not None:
        if config.views is not None:
            raise ConfigError(f"step {context.step}: `views` is for a model; predictions are made already")
        return tuple(found), clips
    from training.autovideo.evaluation.predicting import predict

    views = config.views.model_dump() if config.views is not None else None
    return tuple(predict(model, clips, config.splits, views, context) for model in found), clips


class _Evaluator(Primitive):
    """Judges each split by itself."""

    kind = "evaluator"
    inputs: ClassVar[Mapping[str, Input]] = {
        "predictions": Input(Port.PREDICTIONS, optional=True),
        "model": Input(Port.MODEL, optional=True),
        "clips": Input(Port.CLIP, optional=True),
    }
    outputs: ClassVar[Mapping[str, Port]] = {"metrics": Port.METRICS}
    Config = EvaluatorConfig
    uses_groups: ClassVar[bool] = False

    def figures(self, scored: "Scored", context: Context) -> tuple[dict[str, float], dict[str, Any]]:
        """Return figures and tables of one split, without the split's name before theirs."""
        raise NotImplementedError

    def scored(self, inputs: "Mapping[str, Value]", context: Context) -> "list[Scored]":
        """Return the checked scores of each split."""
        from training.autovideo.evaluation.prediction_files import read_scored

        (value,), clips = predictions_of(inputs, self.config, context)
        shards = None
        if self.uses_groups:
            model = inputs.get("model")
            shards = clips.shards if clips is not None else None
            shards = shards or (model.shards if isinstance(model, Model) else None)
        return [read_scored(value, split, f"step {context.step}", shards) for split in self.config.splits]

    def produce(self, inputs: "Mapping[str, Value]", state: Any, context: Context) -> "dict[str, Value]":
        """Return `metrics`.

        Raises:
            ConfigError: inputs that do not go together, or a figure that the data have not.
        """
        return {"metrics": self.judged(self.scored(inputs, context), context)}

    def judged(self, splits: "Sequence[Scored]", context: Context) -> Metrics:
        """Return the figures of all splits."""
        from training.autovideo.evaluation.figures import FigureError

        values: dict[str, float] = {}
        tables: dict[str, Any] = {}
        for scored in splits:
            try:
                figures, found = self.figures(scored, context)
            except FigureError as error:
                raise FigureError(f"step {context.step}: {error}") from None
            values |= {f"{scored.split}/{name}": float(value) for name, value in figures.items()}
            values[f"{scored.split}/samples"] = float(len(scored.key))
            tables |= {f"{scored.split}/{name}": table for name, table in found.items()}
            if scored.absent:
                tables[f"{scored.split}/absent"] = scored.absent
        return Metrics(values, tables)


class TopKConfig(EvaluatorConfig):
    """Settings of `evaluator/topk`."""

    ks: tuple[int, ...] = setting((1, 5), help="Numbers of classes that a video may be given.", min_length=1)


@primitive("evaluator/topk", version=1)
class TopK(_Evaluator):
    """Share of videos with their class among the k best-scored.

    Figures: `top<k>`; with k = 1 also its 95 % Wilson interval `top1_low` and `top1_high`; `majority`, the accuracy of
    always naming the most frequent class. A k that is not below the number of classes is left out, and named in the
    table `left_out`. With several labels per video one of them suffices.
    """

    Config = TopKConfig
    example = "{id: eval, use: evaluator/topk, in: [net, clip], with: {ks: [1, 5], splits: [val]}}"

    def figures(self, scored: "Scored", context: Context) -> tuple[dict[str, float], dict[str, Any]]:
        """Return top-k for each k."""
        from training.autovideo.evaluation.figures import topk_accuracy
        from training.core.metrics import wilson_interval

        if wrong := [k for k in self.config.ks if k < 1]:
            raise ConfigError(f"step {context.step}: ks must be 1 or more, got {wrong}")
        possible = [k for k in self.config.ks if k < len(scored.classes)]
        result = {f"top{k}": topk_accuracy(scored, k) for k in possible}
        if 1 in possible:
            result["top1_low"], result["top1_high"] = wilson_interval(int(scored.correct.sum()), len(scored.key))
        result["majority"] = float(scored.hot.mean(axis=0).max())
        left = [f"top{k}: there are {len(scored.classes)} classes" for k in self.config.ks if k not in possible]
        return result, {"left_out": left} if left else {}


@primitive("evaluator/mean_class", version=1)
class MeanClass(_Evaluator):
    """Mean over classes of the share of their videos that are named right.

    Figures: `mean_class_accuracy` over the classes that have videos, and their number `classes_present`.
    """

    example = "{id: eval, use: evaluator/mean_class, in: [net, clip]}"

    def figures(self, scored: "Scored", context: Context) -> tuple[dict[str, float], dict[str, Any]]:
        """Return the mean over classes."""
        from training.autovideo.evaluation.figures import confusion_matrix, per_class

        rows = per_class(confusion_matrix(scored), scored.classes)
        recalls = [row.recall for row in rows if row.recall is not None]
        return {"mean_class_accuracy": sum(recalls) / len(recalls), "classes_present": len(recalls)}, {}


@primitive("evaluator/map", version=1)
class MeanAveragePrecision(_Evaluator):
    """Mean over classes of average precision, ties taken together, without interpolation.

    With one label per video each class is judged against all others. Figures: `map` over the classes that have videos,
    and `classes_present`; table `average_precision` by class name, null where a class has none.
    """

    example = "{id: eval, use: evaluator/map, in: [net, clip]}"

    def figures(self, scored: "Scored", context: Context) -> tuple[dict[str, float], dict[str, Any]]:
        """Return mAP and the row of classes."""
        import math

        from training.autovideo.evaluation.figures import FigureError
        from training.core.metrics import average_precision

        found = average_precision(scored.scores, scored.hot).tolist()
        present = [value for value in found if not math.isnan(value)]
        if not present:
            raise FigureError(f"split {scored.split!r}: no video has any of the classes, so none has a precision")
        table = {name: None if math.isnan(v) else v for name, v in zip(scored.classes, found, strict=True)}
        figures = {"map": sum(present) / len(present), "classes_present": float(len(present))}
        return figures, {"average_precision": table}


@primitive("evaluator/confusion", version=1)
class Confusion(_Evaluator):
    """Which classes are taken for which: a table, and a page with a chart.

    Figures: `top1`; tables `classes` and `confusion` (rows true class, columns named class).
    """

    outputs: ClassVar[Mapping[str, Port]] = {"metrics": Port.METRICS, "page": Port.REPORT}
    example = "{id: eval, use: evaluator/confusion, in: [net, clip]}"

    def figures(self, scored: "Scored", context: Context) -> tuple[dict[str, float], dict[str, Any]]:
        """Return the matrix."""
        from training.autovideo.evaluation.figures import confusion_matrix

        table = {"classes": list(scored.classes), "confusion": confusion_matrix(scored).tolist()}
        return {"top1": float(scored.correct.mean())}, table

    def produce(self, inputs: "Mapping[str, Value]", state: Any, context: Context) -> "dict[str, Value]":
        """Return `metrics` and `page`, a folder with `page.html`."""
        from training.autovideo.report.run_page import write_confusion

        splits = self.scored(inputs, context)
        metrics = self.judged(splits, context)
        folder = context.work / "page"
        write_confusion(folder, context.step, splits)
        return {"metrics": metrics, "page": Report(folder, metrics.digest)}


class CalibrationConfig(EvaluatorConfig):
    """Settings of `evaluator/calibration`."""

    bins: int = setting(15, help="Bins of the top probability.", ge=2, le=1000)


@primitive("evaluator/calibration", version=1)
class Calibration(_Evaluator):
    """Whether probabilities are as often right as they say.

    Figures: `ece` (bins of equal width), `ece_mass` (bins of equal mass), `brier` (Σ over classes, 0 to 2), `nll`;
    tables `reliability` and `reliability_mass`: a row per bin with count, mean confidence and accuracy.
    """

    Config = CalibrationConfig
    example = "{id: eval, use: evaluator/calibration, in: [net, clip], with: {bins: 15}}"

    def figures(self, scored: "Scored", context: Context) -> tuple[dict[str, float], dict[str, Any]]:
        """Return errors and reliability tables."""
        from training.autovideo.evaluation.figures import calibration

        figures, width, mass = calibration(scored, self.config.bins)
        return figures, {"reliability": width, "reliability_mass": mass}


@primitive("evaluator/per_class", version=1)
class PerClass(_Evaluator):
    """Recall, precision, F1 and support of each class.

    Table `per_class`: a row per class name; null where a figure has no meaning (no video of the class, or none called
    so). Figures: `mean_class_accuracy`, `mean_class_precision` and `macro_f1`, means over the classes that have videos;
    one that was never named counts with a precision of 0.
    """

    example = "{id: eval, use: evaluator/per_class, in: [net, clip]}"

    def figures(self, scored: "Scored", context: Context) -> tuple[dict[str, float], dict[str, Any]]:
        """Return a row per class, and means."""
        from training.autovideo.evaluation.figures import confusion_matrix, per_class

        rows = per_class(confusion_matrix(scored), scored.classes)
        present = [row for row in rows if row.support]
        means = {
            "mean_class_accuracy": sum(row.recall or 0.0 for row in present) / len(present),
            "mean_class_precision": sum(row.precision or 0.0 for row in present) / len(present),
            "macro_f1": sum(row.f1 or 0.0 for row in present) / len(present),
        }
        return means, {"per_class": [asdict(row) for row in rows]}


class ConfidenceConfig(EvaluatorConfig):
    """Settings of `evaluator/confidence`."""

    by: Literal["known", "group", "sample"] = setting(
        "known", help="What is drawn: groups where they are known and several, groups, or samples."
    )
    resamples: int = setting(2000, help="Bootstrap samples.", ge=100, le=1_000_000)
    level: float = setting(0.95, help="Level of confidence.", gt=0.5, lt=1)


@primitive("evaluator/confidence", version=1)
class Confidence(_Evaluator):
    """Bootstrap interval of the top-1 accuracy.

    Clips of one source video are right or wrong together, so whole groups are drawn where they are known: from the
    predictions, or from the shards of the model or of `clips`. Figures: `top1`, `top1_boot_low`, `top1_boot_high`, and
    `groups` where groups were drawn; table `drawn` says what was. Wilson's interval, `top1_low` and `top1_high` of
    evaluator/topk, takes samples as independent.
    """

    Config = ConfidenceConfig
    determinism = "seeded"
    uses_groups = True
    example = "{id: eval, use: evaluator/confidence, in: [net, clip], with: {by: group}}"

    def figures(self, scored: "Scored", context: Context) -> tuple[dict[str, float], dict[str, Any]]:
        """Return accuracy and interval."""
        from training.autovideo.evaluation.figures import bootstrap_accuracy

        group = scored.group if self.config.by != "sample" else None
        if self.config.by == "group" and group is None:
            raise ConfigError(
                f"step {context.step}: the groups of split {scored.split!r} are not known: connect `clips` of the "
                "shards, or set `by: sample`"
            )
        if self.config.by == "known" and group is not None and len(set(group)) < 2:
            group = None
        low, high = bootstrap_accuracy(
            scored.correct, group, resamples=self.config.resamples, alpha=1 - self.config.level, seed=context.seed
        )
        figures = {"top1": float(scored.correct.mean()), "top1_boot_low": low, "top1_boot_high": high}
        if group is not None:
            figures["groups"] = float(len(set(group)))
        return figures, {"drawn": "sample" if group is None else "group"}


class McNemarConfig(EvaluatorConfig):
    """Settings of `evaluator/mcnemar`."""

    resamples: int = setting(2000, help="Bootstrap samples of the interval of the difference.", ge=100, le=1_000_000)


@primitive("evaluator/mcnemar", version=1)
class McNemar(Primitive):
    """Whether the second of two runs is better than the first, by the videos on which they differ.

    Runs are paired by key; other samples, labels, classes or data are refused. Figures: `gained` (only the second is
    right), `lost` (only the first), `both_right`, `both_wrong`, `difference` (second minus first top-1) with a paired
    bootstrap interval, `p_exact` and `p_mid`. Table `lost` and `gained`: keys.
    """

    kind = "evaluator"
    determinism = "seeded"
    inputs: ClassVar[Mapping[str, Input]] = {
        "predictions": Input(Port.PREDICTIONS, optional=True, several=True),
        "model": Input(Port.MODEL, optional=True, several=True),
        "clips": Input(Port.CLIP, optional=True),
    }
    outputs: ClassVar[Mapping[str, Port]] = {"metrics": Port.METRICS}
    Config = McNemarConfig
    example = "{id: eval, use: evaluator/mcnemar, in: [net, other, clip]}"

    def produce(self, inputs: "Mapping[str, Value]", state: Any, context: Context) -> "dict[str, Value]":
        """Return `metrics`.

        Raises:
            ConfigError: not two runs.
            FigureError: runs that cannot be paired.
        """
        import numpy as np

        from training.autovideo.evaluation.figures import Scored, mcnemar
        from training.autovideo.evaluation.prediction_files import paired
        from training.core.gate_statistics import paired_bootstrap

        runs, _ = predictions_of(inputs, self.config, context, runs=2)
        values: dict[str, float] = {}
        tables: dict[str, Any] = {}
        for split in self.config.splits:
            arrays = paired(runs, split, f"step {context.step}")
            keys = tuple(str(key) for key in arrays[0].key)
            label = arrays[0].label.astype(np.int64)
            first, second = (
                Scored(split, keys, label, run.scores.astype(np.float64), run.classes).correct for run in arrays
            )
            difference = second.astype(np.float64) - first.astype(np.float64)
            low, high = paired_bootstrap(difference, alpha=0.05, resamples=self.config.resamples, seed=context.seed)
            figures = mcnemar(first, second) | {"difference_low": low, "difference_high": high}
            values |= {f"{split}/{name}": value for name, value in figures.items()}
            values[f"{split}/samples"] = float(len(keys))
            tables[f"{split}/gained"] = [keys[i] for i in np.flatnonzero(second & ~first)]
            tables[f"{split}/lost"] = [keys[i] for i in np.flatnonzero(first & ~second)]
        return {"metrics": Metrics(values, tables)}
