"""One evaluation taken apart: what any other choice of segments and modalities would have given.

Fusion is a sum over segments and modalities (§3, late fusion), so the score of a video under any choice follows from
the weighted scores of each segment and modality by themselves. Nothing is run again, and torch is not needed.

Shape suffixes: N videos, S segments, K modalities, C classes.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from training.core.metrics import average_precision, wilson_interval

if TYPE_CHECKING:
    from training.core.evaluate import Predictions

Array = NDArray[Any]
Flags = NDArray[np.bool_]
Floats = NDArray[np.float64]

EXTRAS = ("choices", "available", "use_logits", "segment_scores", "weights", "gmac")
"""What an evaluation has to record beside scores."""

CHUNK = 256
"""Videos whose scores are widened to float32 at a time."""


class SegmentsError(ValueError):
    """Predictions that are no evaluation of this family, or that contradict themselves."""


@dataclass(frozen=True)
class Point:
    """A policy in the accuracy-cost plane."""

    name: str
    top1: float
    """mAP on multi-label data; of several draws the mean."""
    gmac: float
    """Mean per video; of several draws the mean."""
    low: float | None = None
    high: float | None = None
    """95 % Wilson interval of `top1`, None for mAP. It is that of N videos, without the chance of the draws."""
    draws: int = 1
    deviation: float = 0.0
    """Standard deviation of `top1` between draws."""


@dataclass(frozen=True)
class Segments:
    """One evaluation, taken apart into segments and modalities."""

    names: tuple[str, ...]
    """Modalities, in the order of the decisions."""
    label: Array
    """(N,) class indices, or (N,C) multi-hot."""
    scores_NC: Array
    """Probabilities of the evaluated model."""
    choices_NSK: Flags
    """What it used."""
    available_NSK: Flags
    use_logits_NSK: Array
    """Log-odds of use, z1 − z0."""
    segment_scores_NSKC: Array
    """w_k·ℓ_k(s): weighted class scores of each segment as if it had been used."""
    weights_NK: Array
    """Fusion weights w."""
    gmac_N: Floats
    """What was executed for each video, GMAC."""
    cost_K: Floats
    """GMAC per segment of each modality."""
    policy_gmac: float
    """GMAC per segment of the policy."""
    mean: Literal["segments", "used"]
    """What a video's score is divided by; see `AdaMMLConfig.mean`."""
    least_one: bool
    """Whether a policy that would skip everything uses one (segment, modality) nevertheless."""
    arms: Mapping[str, Array] = field(default_factory=dict)
    """Name → (N,C) scores of models that were evaluated beside it: `fusion`, and each modality by itself."""

    @classmethod
    def of(
        cls,
        predictions: "Predictions",
        cost: Mapping[str, float],
        *,
        policy_gmac: float,
        mean: Literal["segments", "used"],
        least_one: bool,
    ) -> "Segments":
        """Take an evaluation apart.

        Args:
            predictions: with the extras of `EXTRAS`.
            cost: modality → GMAC per segment, in the order of the decisions.
            policy_gmac: GMAC per segment of the policy.
            mean: `AdaMMLConfig.mean`.
            least_one: `AdaMMLConfig.least_one`.

        Raises:
            SegmentsError: an extra is missing, arrays do not fit one another, or something was used that was not there.
        """
        extras = predictions.extras
        if missing := [name for name in EXTRAS if name not in extras]:
            raise SegmentsError(
                f"the predictions lack {', '.join(f'extra/{name}' for name in missing)}; evaluate the model again with "
                "adamml_eval of this version"
            )
        segments = cls(
            names=tuple(cost),
            label=predictions.label,
            scores_NC=predictions.scores,
            choices_NSK=extras["choices"].astype(bool),
            available_NSK=extras["available"].astype(bool),
            use_logits_NSK=extras["use_logits"],
            segment_scores_NSKC=extras["segment_scores"],
            weights_NK=extras["weights"],
            gmac_N=extras["gmac"].astype(np.float64),
            cost_K=np.array(list(cost.values()), dtype=np.float64),
            policy_gmac=float(policy_gmac),
            mean=mean,
            least_one=least_one,
            arms=predictions.arms,
        )
        segments._check()
        return segments

    def _check(self) -> None:
        videos, classes = self.scores_NC.shape
        shape = (videos, *self.choices_NSK.shape[1:2], len(self.names))
        wanted = {
            "choices": (self.choices_NSK.shape, shape),
            "available": (self.available_NSK.shape, shape),
            "use_logits": (self.use_logits_NSK.shape, shape),
            "segment_scores": (self.segment_scores_NSKC.shape, (*shape, classes)),
            "weights": (self.weights_NK.shape, (videos, len(self.names))),
            "gmac": (self.gmac_N.shape, (videos,)),
        }
        for name, (got, right) in wanted.items():
            if got != right:
                raise SegmentsError(
                    f"extra/{name} has the shape {got}; with scores {self.scores_NC.shape} and the modalities "
                    f"{list(self.names)} it must be {right}"
                )
        if videos == 0:
            raise SegmentsError("the predictions have no videos")
        if int((self.choices_NSK & ~self.available_NSK).sum()):
            raise SegmentsError("extra/choices uses modalities where extra/available says there are none")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Videos, segments, modalities."""
        videos, segments, modalities = self.choices_NSK.shape
        return int(videos), int(segments), int(modalities)

    @property
    def multi_label(self) -> bool:
        """Whether a video may have several classes."""
        return bool(self.label.ndim == 2)

    @property
    def measure(self) -> Literal["top1", "map"]:
        """What accuracy means here."""
        return "map" if self.multi_label else "top1"

    # --- what a choice gives ------------------------------------------------------------------

    def scores(self, used_NSK: Flags) -> NDArray[np.float32]:
        """Return the probabilities (N,C) under a choice: softmax of the mean score; uniform where nothing is used."""
        videos, segments, modalities = self.shape
        classes = self.scores_NC.shape[1]
        used_NX = used_NSK.reshape(videos, segments * modalities).astype(np.float32)
        flat_NXC = self.segment_scores_NSKC.reshape(videos, segments * modalities, classes)
        result = np.empty((videos, classes), np.float32)
        for start in range(0, videos, CHUNK):
            part = slice(start, start + CHUNK)
            result[part] = np.matmul(used_NX[part, None], flat_NXC[part].astype(np.float32))[:, 0]
        if self.mean == "segments":
            result /= segments
        else:
            total_N = (used_NSK.sum(axis=1) * self.weights_NK).sum(axis=1)
            # As the model: weights may be negative and cancel, and then there is nothing sensible to divide by.
            result /= np.where(np.abs(total_N) < 1e-6, 1.0, total_N)[:, None].astype(np.float32)
        result = np.exp(result - result.max(axis=1, keepdims=True))
        return np.asarray(result / result.sum(axis=1, keepdims=True), dtype=np.float32)

    def gmac(self, used_NSK: Flags, policy: bool) -> Floats:
        """Return the cost (N,) of a choice, GMAC per video; with `policy` that of the policy on every segment too."""
        total_N = used_NSK.sum(axis=1) @ self.cost_K
        return np.asarray(total_N + self.shape[1] * self.policy_gmac * policy, dtype=np.float64)

    def correct(self, scores_NC: Array) -> Flags:
        """Return whether the best class is right (N,), of multi-label data whether it is one of the video's."""
        best_N = scores_NC.argmax(axis=1)
        if self.multi_label:
            return np.asarray(self.label[np.arange(len(best_N)), best_N] > 0)
        return np.asarray(best_N == self.label)

    def accuracy(self, scores_NC: Array) -> float:
        """Return top-1 accuracy of scores, mAP of multi-label data; a share."""
        if self.multi_label:
            return float(np.nanmean(average_precision(scores_NC, self.label > 0)))
        return float(self.correct(scores_NC).mean())

    def top1(self, used_NSK: Flags) -> float:
        """Return the accuracy of a choice (see `accuracy`)."""
        return self.accuracy(self.scores(used_NSK))

    def point(self, name: str, scores: Sequence[Array], gmac: Sequence[float]) -> Point:
        """Return the point of one or several draws, from their scores (N,C) and mean costs."""
        values = [self.accuracy(each) for each in scores]
        value = float(np.mean(values))
        low, high = None, None
        if not self.multi_label:
            videos = self.shape[0]
            low, high = wilson_interval(min(value * videos, videos), videos)
        deviation = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
        return Point(name, value, float(np.mean(gmac)), low, high, len(values), deviation)

    def of_choices(self, name: str, choices: Sequence[Flags], *, policy: bool) -> Point:
        """Return the point of one or several choices (draws)."""
        costs = [float(self.gmac(used, policy).mean()) for used in choices]
        return self.point(name, [self.scores(used) for used in choices], costs)

    # --- policies -----------------------------------------------------------------------------

    def everything(self) -> Flags:
        """Use all that is available."""
        return self.available_NSK.copy()

    def given(self, flags_NSK: Array) -> Flags:
        """Use what is flagged (a generator's own marks of what is informative), where it is available."""
        if flags_NSK.shape != self.choices_NSK.shape:
            raise SegmentsError(f"flags of shape {flags_NSK.shape}; they must be {self.choices_NSK.shape}")
        return np.asarray(flags_NSK.astype(bool) & self.available_NSK)

    def by_threshold(self, p: float) -> Flags:
        """Use what the policy gives a probability of use above p. p = 0.5 is its arg-max."""
        if not 0 <= p <= 1:
            raise SegmentsError(f"a threshold is a probability, got {p}")
        bound = math.inf * (1 if p == 1 else -1) if p in (0, 1) else math.log(p / (1 - p))
        used_NSK = np.asarray((self.use_logits_NSK > bound) & self.available_NSK)
        return self._at_least_one(used_NSK, self.use_logits_NSK)

    def rates(self, used_NSK: Flags) -> Floats:
        """Return (K,) how often each modality is used where it is available; 0 where it never is."""
        there_K = self.available_NSK.sum(axis=(0, 1))
        return np.asarray((used_NSK & self.available_NSK).sum(axis=(0, 1)) / np.maximum(there_K, 1))

    def sampled(self, seed: int) -> Flags:
        """Return decisions drawn from the policy's own probabilities, as in training."""
        # Log-odds beyond 60 are certain, and would overflow further out.
        probability = 1 / (1 + np.exp(-np.clip(self.use_logits_NSK.astype(np.float64), -60, 60)))
        drawn = np.random.default_rng(seed).random(probability.shape) < probability
        return np.asarray(drawn & self.available_NSK)

    def at_random(self, rates_K: Array, seed: int) -> Flags:
        """Use each modality of each segment, where available, with the probability of `rates`, blindly."""
        draws_NSK = np.random.default_rng(seed).random(self.choices_NSK.shape)
        used_NSK = np.asarray((draws_NSK < np.asarray(rates_K)) & self.available_NSK)
        return self._at_least_one(used_NSK, np.log(np.asarray(rates_K) + 1e-12) - np.log(draws_NSK + 1e-300))

    def all_or_none(self, share: float, seed: int) -> Flags:
        """Use everything in a random share of each video's segments, and nothing in the others.

        Where the share is no whole number of segments, it is rounded up or down at random so that its mean is exact.
        """
        rng = np.random.default_rng(seed)
        videos, segments, _ = self.shape
        count_N = np.floor(share * segments + rng.random(videos))
        place_NS = rng.random((videos, segments)).argsort(axis=1).argsort(axis=1)
        return np.asarray((place_NS < count_N[:, None])[:, :, None] & self.available_NSK)

    def oracle(self, label: Array) -> Flags:
        """Use the cheapest single modality of a segment whose score alone names the class; where none does, everything.

        Knows the label: a bound on what choosing could give, not a policy. Of equally cheap ones the first segment.
        """
        best_NSK = self._alone().argmax(axis=-1)
        if label.ndim == 2:
            right_NSK = np.take_along_axis(label > 0, best_NSK.reshape(len(label), -1), axis=1).reshape(best_NSK.shape)
        else:
            right_NSK = best_NSK == label[:, None, None]
        right_NSK = right_NSK & self.available_NSK
        used_NSK = np.zeros_like(self.choices_NSK)
        open_N = np.ones(len(label), bool)
        for k in np.argsort(self.cost_K, kind="stable"):
            found_N = open_N & right_NSK[:, :, k].any(axis=1)
            used_NSK[found_N, right_NSK[found_N, :, k].argmax(axis=1), k] = True
            open_N &= ~found_N
        used_NSK[open_N] = self.available_NSK[open_N]
        return used_NSK

    def _alone(self) -> Array:
        """Return scores (N,S,K,C) that rank the classes as one (segment, modality) by itself would."""
        if self.mean == "segments":
            return self.segment_scores_NSKC
        # Divided by w, a negative weight turns the ranking round.
        return self.segment_scores_NSKC * np.where(self.weights_NK < 0, -1, 1)[:, None, :, None].astype(np.float16)

    def _at_least_one(self, used_NSK: Flags, sureness_NSK: Array) -> Flags:
        """Where nothing is used, use the surest (segment, modality) that is available, if the model does so."""
        if not self.least_one:
            return used_NSK
        used_NX = used_NSK.reshape(len(used_NSK), -1).copy()
        there_NX = self.available_NSK.reshape(used_NX.shape)
        sure_NX = np.where(there_NX, sureness_NSK.reshape(used_NX.shape), -np.inf)
        rows = np.flatnonzero(~used_NX.any(axis=1) & there_NX.any(axis=1))
        used_NX[rows, sure_NX[rows].argmax(axis=1)] = True
        return np.asarray(used_NX.reshape(used_NSK.shape))

    # --- facts of the model's own choices -------------------------------------------------------

    def usage(self) -> Floats:
        """Return (N,K) the share of a video's segments in which each modality was used."""
        return np.asarray(self.choices_NSK.mean(axis=1, dtype=np.float64))

    def own(self, name: str = "model") -> Point:
        """Return the evaluated model, with its own scores and what it executed."""
        return self.point(name, [self.scores_NC], [float(self.gmac_N.mean())])

    def equal_cost_share(self) -> float:
        """Return the share of fully used segments that costs what the model executed, its policy included."""
        full = float(self.gmac(self.everything(), policy=False).mean())
        return min(1.0, float(self.gmac_N.mean()) / full) if full else 0.0
