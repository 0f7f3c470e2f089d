"""How the scores of several members become one: rules with given weights, and rules that learn from a split.

M members, N samples, K classes. Scores are probabilities, as evaluation writes them. A learned rule must not be judged
on the samples that it learned from, so these are divided into folds: the scores of each come from a rule that was
fitted without it (cross-fitting; Wolpert 1992 for stacking). All other samples get the rule fitted on everything.
"""

import hashlib
import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.autovideo.evaluation.figures import FigureError

log = logging.getLogger(__name__)

Floats = NDArray[np.float64]

LEAST = 1e-7
"""Probabilities below it count as it in a logarithm: float32 scores are often exactly 0."""
GAP = 1e-6
"""Bound of how far the fitted loss may be above the least one, nats."""
ROUNDS = 20_000


def mean_of_logs(scores_MNK: Floats, weight_M: Floats, *, multi_label: bool) -> Floats:
    """Return Σ_m w_m · log p_m, normalised to probabilities (with several labels: of each class by itself), (N,K)."""
    chance = np.clip(scores_MNK, LEAST, 1.0)
    if multi_label:
        chance = np.minimum(chance, 1 - LEAST)
        logits = np.einsum("m,mnk->nk", weight_M, np.log(chance) - np.log1p(-chance))
        return np.asarray(1 / (1 + np.exp(-logits)))
    return softmax(np.einsum("m,mnk->nk", weight_M, np.log(chance)))


def mean_of_probabilities(scores_MNK: Floats, weight_M: Floats) -> Floats:
    """Return Σ_m w_m · p_m, (N,K)."""
    return np.asarray(np.einsum("m,mnk->nk", weight_M, scores_MNK))


def softmax(logits_NK: Floats) -> Floats:
    """Return probabilities of each row."""
    rows = np.exp(logits_NK - logits_NK.max(axis=1, keepdims=True))
    return np.asarray(rows / rows.sum(axis=1, keepdims=True))


# --- fitted weights -----------------------------------------------------------------------------


def fit_weights(scores_MNK: Floats, label_N: NDArray[np.int64]) -> Floats:
    """Return the nonnegative weights with sum 1 whose mean of probabilities has the least NLL.

    By expectation maximisation: w_m ← w_m · mean_n p_m(y_n) / Σ_j w_j p_j(y_n). The loss is convex, and the largest
    factor less 1 bounds how far it is above its least value, so the end is known and not guessed.

    Raises:
        FigureError: the bound was not reached.
    """
    own_MN = np.maximum(scores_MNK[:, np.arange(len(label_N)), label_N], LEAST)
    weight = np.full(len(own_MN), 1 / len(own_MN))
    for _ in range(ROUNDS):
        factor = (own_MN / (weight @ own_MN)).mean(axis=1)
        if factor.max() - 1 <= GAP:
            break
        weight = weight * factor
        weight /= weight.sum()
    else:
        if factor.max() - 1 > 1e-3:
            raise FigureError(
                f"the weights of the ensemble did not settle after {ROUNDS} rounds: the loss may be "
                f"{factor.max() - 1:.1e} above the least one; leave out members that are nearly equal"
            )
    weight[weight < 1e-9] = 0.0
    return np.asarray(weight / weight.sum())


# --- stacking -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stack:
    """A multinomial logistic regression over the members' scores."""

    present: NDArray[np.int64]
    """(P,) classes that the samples had; of others nothing was learned."""
    coefficient: Floats
    """(P, M·K)."""
    intercept: Floats
    """(P,)."""

    def __call__(self, scores_MNK: Floats) -> Floats:
        """Return probabilities (N,K); a class that was never seen keeps the mean of what the members give it."""
        plain = scores_MNK.mean(axis=0)
        learned = softmax(stack_inputs(scores_MNK) @ self.coefficient.T + self.intercept)
        result = plain / plain.sum(axis=1, keepdims=True)
        unseen = np.setdiff1d(np.arange(plain.shape[1]), self.present)
        room = 1 - result[:, unseen].sum(axis=1, keepdims=True)
        result[:, self.present] = learned * room
        return np.asarray(result)


def stack_inputs(scores_MNK: Floats) -> Floats:
    """Return the logarithms of the scores, (N, M·K), those of a member and sample with mean 0."""
    logs = np.log(np.clip(scores_MNK, LEAST, 1.0))
    logs -= logs.mean(axis=2, keepdims=True)
    return np.asarray(logs.transpose(1, 0, 2).reshape(scores_MNK.shape[1], -1))


def fit_stack(scores_MNK: Floats, label_N: NDArray[np.int64], strength: float) -> Stack:
    """Fit a stack.

    Args:
        scores_MNK: of the members.
        label_N: class indices.
        strength: C of scikit-learn: the larger, the less the coefficients are held down.

    Raises:
        FigureError: fewer than two classes, of which nothing can be learned.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    present = np.unique(label_N)
    if len(present) < 2:
        raise FigureError(f"{len(label_N)} samples of {len(present)} class: a stack needs at least two classes")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = LogisticRegression(C=strength, max_iter=2000).fit(stack_inputs(scores_MNK), label_N)
    if any(issubclass(warning.category, ConvergenceWarning) for warning in caught):
        log.warning("the logistic regression of the stack did not converge in 2000 rounds; a smaller C settles sooner")
    coefficient, intercept = model.coef_, model.intercept_
    if len(present) == 2:  # one row that tells the second from the first
        coefficient = np.concatenate([np.zeros_like(coefficient), coefficient])
        intercept = np.concatenate([np.zeros_like(intercept), intercept])
    return Stack(
        np.ascontiguousarray(present, np.int64),
        np.ascontiguousarray(coefficient, np.float64),
        np.ascontiguousarray(intercept, np.float64),
    )


# --- folds --------------------------------------------------------------------------------------


def folds_of(names: Sequence[str], folds: int) -> NDArray[np.int64]:
    """Return the fold of each name, (N,): those with the same name in the same one, as even as that allows.

    Names are dealt out in the order of their hashes, so the result depends on their set only.

    Args:
        names: groups, or keys where groups are not known.
        folds: how many.

    Raises:
        FigureError: fewer names than folds.
    """
    unique = sorted(set(names), key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    if len(unique) < folds:
        raise FigureError(
            f"{len(unique)} groups of samples cannot be divided into {folds} folds; set a smaller `folds` (1 fits and "
            "judges on the same samples)"
        )
    place = {name: number % folds for number, name in enumerate(unique)}
    return np.array([place[name] for name in names], dtype=np.int64)
