"""Ensemblers: the predictions of several runs on the same samples become one."""

import json
import logging
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from data_specs.schema import digest
from training.autovideo.primitive import Input, Port, Primitive, PrimitiveConfig, primitive, setting
from training.autovideo.values import Context, Predictions, Value
from training.core.config import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from training.autovideo.evaluation.ensembling import Stack
    from training.core.evaluate import Predictions as PredictionArrays

log = logging.getLogger(__name__)

Rule = Literal["probabilities", "logits"]


class _Ensembler(Primitive):
    """Pairs the members' predictions by key and combines each split that all have."""

    kind = "ensembler"
    inputs: ClassVar[Mapping[str, Input]] = {"predictions": Input(Port.PREDICTIONS, several=True)}
    outputs: ClassVar[Mapping[str, Port]] = {"predictions": Port.PREDICTIONS}

    @abstractmethod
    def combined(
        self, state: Any, scores_MNK: "NDArray[np.float64]", first: "PredictionArrays", context: Context
    ) -> "NDArray[np.float64]":
        """Return the scores (N,K) of one split.

        Args:
            state: what `fit` returned.
            scores_MNK: of the members.
            first: keys and labels.
            context: of the step.
        """

    def produce(self, inputs: "Mapping[str, Value]", state: Any, context: Context) -> "dict[str, Value]":
        """Return `predictions` of the splits that all members have.

        Raises:
            ConfigError: no split that all have, or settings that do not fit the members.
            FigureError: members with other samples, labels, classes or data.
        """
        import numpy as np

        from data_specs.files import sha256_of
        from training.autovideo.evaluation.prediction_files import paired
        from training.core.evaluate import Predictions as PredictionArrays

        members = members_of(inputs, context)
        common = sorted(set.intersection(*(set(member.files) for member in members)))
        if left := sorted(set().union(*(member.files for member in members)) - set(common)):
            log.warning("step %s: not all members have the splits %s; they are left out", context.step, left)
        if not common:
            raise ConfigError(f"step {context.step}: the members have no split in common")
        files: dict[str, Path] = {}
        marks: dict[str, str] = {}
        sums: dict[str, str] = {}
        for split in common:
            runs = paired(members, split, f"step {context.step}")
            scores = self.combined(state, stacked(runs, split, context), runs[0], context)
            extras = {"group": runs[0].extras["group"]} if "group" in runs[0].extras else {}
            if all("gmac" in run.extras for run in runs):
                extras["gmac"] = np.sum([run.extras["gmac"] for run in runs], axis=0)
            result = PredictionArrays(
                runs[0].key, runs[0].label, scores.astype("float32"), arms={}, extras=extras, classes=runs[0].classes
            )
            files[split] = context.work / f"{split}.npz"
            result.save(files[split])
            sums[split] = sha256_of(files[split])
            # `paired` has seen that those which have one have the same.
            marks[split] = next((m.fingerprints[split] for m in members if split in m.fingerprints), "")
        costs = [member.gmac for member in members]
        gmac = None if any(cost is None for cost in costs) else float(sum(cost or 0.0 for cost in costs))
        value = Predictions(files, tuple(members[0].classes), marks, digest({"files": sums, "data": marks}), gmac)
        return {"predictions": value}


def members_of(inputs: Mapping[str, Any], context: Context) -> tuple[Predictions, ...]:
    """Return the members.

    Raises:
        ConfigError: fewer than two.
    """
    given = inputs["predictions"]
    members = given if isinstance(given, tuple) else (given,)
    if len(members) < 2:
        raise ConfigError(f"step {context.step}: an ensemble of {len(members)}; connect two or more predictions")
    return members


def stacked(runs: "Sequence[PredictionArrays]", split: str, context: Context) -> "NDArray[np.float64]":
    """Return the scores of all members, (M,N,K).

    Raises:
        FigureError: no samples, or scores that are not finite or no probabilities.
    """
    import numpy as np

    from training.autovideo.evaluation.figures import FigureError, Scored

    arrays = []
    for number, run in enumerate(runs, start=1):
        name = f"step {context.step}, member {number}"
        label = np.asarray(run.label).astype(np.int64)
        scores = run.scores.astype(np.float64)
        try:
            scored = Scored(split, tuple(str(key) for key in run.key), label, scores, run.classes)
            arrays.append(scored.scores if scored.multi_label else scored.probabilities())
        except FigureError as error:
            raise FigureError(f"{name}: {error}") from None
    return np.stack(arrays)


def _weights(given: Sequence[float], members: int, context: Context) -> "NDArray[np.float64]":
    import numpy as np

    if len(given) != members:
        raise ConfigError(f"step {context.step}: {len(given)} weights for {members} members")
    weight = np.asarray(given, dtype=np.float64)
    if not np.isfinite(weight).all() or (weight < 0).any() or weight.sum() == 0:
        raise ConfigError(f"step {context.step}: weights must be 0 or more and not all 0, got {list(given)}")
    return np.asarray(weight / weight.sum())


def _mixed(rule: Rule, scores_MNK: Any, weight_M: Any, multi_label: bool) -> Any:
    from training.autovideo.evaluation.ensembling import mean_of_logs, mean_of_probabilities

    if rule == "logits":
        return mean_of_logs(scores_MNK, weight_M, multi_label=multi_label)
    return mean_of_probabilities(scores_MNK, weight_M)


# --- mean ---------------------------------------------------------------------------------------


class MeanConfig(PrimitiveConfig):
    """Settings of `ensembler/mean`."""

    of: Rule = setting("probabilities", help="What is averaged: probabilities, or their logarithms (a geometric mean).")


@primitive("ensembler/mean", version=1)
class Mean(_Ensembler):
    """Mean of the members' probabilities, or of their logarithms."""

    Config = MeanConfig
    example = "{id: both, use: ensembler/mean, in: [first, second]}"

    def combined(self, state: Any, scores_MNK: Any, first: "PredictionArrays", context: Context) -> Any:
        """Return the mean."""
        weight = _weights([1.0] * len(scores_MNK), len(scores_MNK), context)
        return _mixed(self.config.of, scores_MNK, weight, first.label.ndim == 2)


# --- what learns --------------------------------------------------------------------------------


class FittedConfig(PrimitiveConfig):
    """What ensemblers that learn have."""

    fit_on: Literal["train", "val"] = setting(
        "val", help="Split that is learned from; members have seen train, so their scores there are too good."
    )
    folds: int = setting(
        5, help="Folds of that split, each predicted by a rule fitted without it; 1: none, figures of it are too good.",
        ge=1, le=100,
    )  # fmt: skip


@dataclass(frozen=True)
class Fitted:
    """A rule of everything, and one for each fold of the samples that it was fitted on."""

    full: Any
    parts: tuple[Any, ...]
    """By fold; empty with one fold."""
    fold: Mapping[str, int]
    """Of each sample, by key."""


class _FittedEnsembler(_Ensembler):
    """Learns from one split; see `training/autovideo/evaluation/ensembling.py` on how it is judged there."""

    def learned(self, scores_MNK: Any, label_N: Any) -> Any:
        """Return a rule."""
        raise NotImplementedError

    def applied(self, rule: Any, scores_MNK: Any) -> Any:
        """Return scores (N,K) by a rule."""
        raise NotImplementedError

    def fit(self, inputs: "Mapping[str, Value]", context: Context) -> Fitted | None:
        """Learn from the split `fit_on`.

        Raises:
            FigureError: not all members have it, several labels per sample, or too few samples or classes.
        """
        from training.autovideo.evaluation.ensembling import folds_of
        from training.autovideo.evaluation.figures import FigureError
        from training.autovideo.evaluation.prediction_files import paired

        runs = paired(members_of(inputs, context), self.config.fit_on, f"step {context.step}")
        first, scores = runs[0], stacked(runs, self.config.fit_on, context)
        if first.label.ndim != 1:
            raise FigureError(f"step {context.step}: {self.id} learns from samples of one label; use ensembler/mean")
        label = first.label.astype("int64")
        keys = [str(key) for key in first.key]
        try:
            full = self.learned(scores, label)
            if self.config.folds == 1:
                return Fitted(full, (), {})
            names = [str(name) for name in first.extras["group"]] if "group" in first.extras else keys
            fold = folds_of(names, self.config.folds)
            parts = tuple(self.learned(scores[:, fold != i], label[fold != i]) for i in range(self.config.folds))
        except FigureError as error:
            raise FigureError(f"step {context.step}: {error}") from None
        return Fitted(full, parts, dict(zip(keys, fold.tolist(), strict=True)))

    def combined(self, state: Any, scores_MNK: Any, first: "PredictionArrays", context: Context) -> Any:
        """Return the scores by the rule of each sample's fold, or by that of everything."""
        import numpy as np

        fold = np.array([state.fold.get(str(key), -1) for key in first.key])
        result = self.applied(state.full, scores_MNK)
        for number, rule in enumerate(state.parts):
            inside = fold == number
            if inside.any():
                result[inside] = self.applied(rule, scores_MNK[:, inside])
        return result


class WeightedConfig(FittedConfig):
    """Settings of `ensembler/weighted`."""

    weights: tuple[float, ...] | None = setting(
        None, help="Weight of each member, 0 or more; None: those with the least NLL on the split `fit_on`."
    )
    of: Rule = setting(
        "probabilities", help="What is averaged: probabilities, or their logarithms (only with given weights)."
    )


@primitive("ensembler/weighted", version=1)
class Weighted(_FittedEnsembler):
    """Weighted mean of the members' scores, with given weights or fitted ones.

    Fitted weights are nonnegative, have the sum 1 and the least NLL of the mean of probabilities. Predictions of the
    split that they were fitted on are cross-fitted: each fold is weighted by a fit without it.
    """

    Config = WeightedConfig
    example = "{id: both, use: ensembler/weighted, in: [first, second]}"

    def learned(self, scores_MNK: Any, label_N: Any) -> Any:
        """Return weights (M,)."""
        from training.autovideo.evaluation.ensembling import fit_weights

        return fit_weights(scores_MNK, label_N)

    def applied(self, rule: Any, scores_MNK: Any) -> Any:
        """Return the weighted mean."""
        return _mixed("probabilities", scores_MNK, rule, multi_label=False)

    def fit(self, inputs: "Mapping[str, Value]", context: Context) -> Fitted | None:
        """Fit weights, unless they are given."""
        if self.config.weights is not None:
            return None
        if self.config.of != "probabilities":
            raise ConfigError(f"step {context.step}: weights are fitted for a mean of probabilities; give `weights`")
        return super().fit(inputs, context)

    def combined(self, state: Any, scores_MNK: Any, first: "PredictionArrays", context: Context) -> Any:
        """Return the weighted mean."""
        if self.config.weights is None:
            return super().combined(state, scores_MNK, first, context)
        weight = _weights(self.config.weights, len(scores_MNK), context)
        return _mixed(self.config.of, scores_MNK, weight, first.label.ndim == 2)

    def save(self, state: Fitted | None, folder: Path) -> None:
        """Write `weights.json`."""
        if state is not None:
            values = {"full": state.full.tolist(), "parts": [part.tolist() for part in state.parts]}
            (folder / "weights.json").write_text(json.dumps(values | {"fold": dict(state.fold)}, sort_keys=True))

    def load(self, folder: Path) -> Fitted | None:
        """Read `weights.json`."""
        import numpy as np

        path = folder / "weights.json"
        if not path.exists():
            return None
        values = json.loads(path.read_text())
        return Fitted(np.array(values["full"]), tuple(np.array(part) for part in values["parts"]), values["fold"])


class StackingConfig(FittedConfig):
    """Settings of `ensembler/stacking`."""

    strength: float = setting(
        0.1, help="C of the logistic regression: the larger, the freer its coefficients.", gt=0, le=1e6
    )


@primitive("ensembler/stacking", version=1)
class Stacking(_FittedEnsembler):
    """Multinomial logistic regression on the logarithms of the members' scores.

    The predictions of the split that it learned from are cross-fitted: each fold comes from a regression without it,
    and figures of that split are honest. A class without a sample there keeps the mean of what the members give it.
    """

    Config = StackingConfig
    example = "{id: both, use: ensembler/stacking, in: [first, second], with: {folds: 5}}"

    def learned(self, scores_MNK: Any, label_N: Any) -> "Stack":
        """Return a regression."""
        from training.autovideo.evaluation.ensembling import fit_stack

        return fit_stack(scores_MNK, label_N, self.config.strength)

    def applied(self, rule: Any, scores_MNK: Any) -> Any:
        """Return what the regression says."""
        return rule(scores_MNK)

    def save(self, state: Fitted, folder: Path) -> None:
        """Write `stack.safetensors` and `stack.json`."""
        from safetensors.numpy import save_file

        tensors: dict[str, Any] = {}
        for name, rule in {"full": state.full, **{f"part{i}": rule for i, rule in enumerate(state.parts)}}.items():
            tensors |= {f"{name}.{field}": value for field, value in vars(rule).items()}
        save_file(tensors, folder / "stack.safetensors")
        values = {"parts": len(state.parts), "fold": dict(state.fold)}
        (folder / "stack.json").write_text(json.dumps(values, sort_keys=True))

    def load(self, folder: Path) -> Fitted:
        """Read what `save` wrote."""
        from safetensors.numpy import load_file

        from training.autovideo.evaluation.ensembling import Stack

        tensors = load_file(folder / "stack.safetensors")
        values = json.loads((folder / "stack.json").read_text())

        def rule(name: str) -> Stack:
            start = f"{name}."
            return Stack(**{key.removeprefix(start): v for key, v in tensors.items() if key.startswith(start)})

        return Fitted(rule("full"), tuple(rule(f"part{i}") for i in range(values["parts"])), values["fold"])
