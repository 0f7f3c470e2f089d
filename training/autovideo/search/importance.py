"""How much each choice of a search mattered: permutation importance of a random forest (Breiman, 2001).

The columns are those of `Space.encode`: a parameter that does not exist in a candidate has a value of its own, so that
conditional parameters can be compared with others. Optuna's fANOVA looks only at parameters that every trial has, which
leaves out just those of the alternatives; it is not used.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FEWEST = 10
"""Finished trials below which nothing is said."""
FOLDS = 5


@dataclass(frozen=True)
class ColumnImportance:
    """Of one column."""

    name: str
    mean: float
    """Loss of explained variance (R²) of held-out trials with the column shuffled; about 0 where it tells nothing."""
    std: float
    """Over repeats."""


@dataclass(frozen=True)
class Importance:
    """What can be said of a search."""

    columns: tuple[ColumnImportance, ...]
    """Most important first; empty where nothing can be said."""
    explained: float | None
    """R² of the forest on held-out trials; at 0 or below it explains nothing and the columns mean nothing."""
    trials: int
    note: str
    """For people: what the figures are worth."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def importance(
    rows: Sequence[Mapping[str, float | str | None]], values: Sequence[float], *, repeats: int = 10, seed: int = 0
) -> Importance:
    """Return how much each column tells about the metric.

    Args:
        rows: `Space.encode` of finished trials, all with the same columns.
        values: their metric; trials without a finite one are left out.
        repeats: shufflings per column and fold.
        seed: of folds, forest and shuffling.

    Raises:
        ValueError: another number of values than of rows, or rows with different columns.
    """
    if len(rows) != len(values):
        raise ValueError(f"{len(rows)} rows and {len(values)} values")
    pairs = [(row, value) for row, value in zip(rows, values, strict=True) if math.isfinite(value)]
    count = len(pairs)
    if count < FEWEST:
        return Importance((), None, count, f"too few trials: {count} finished, at least {FEWEST} are needed")
    names = list(pairs[0][0])
    if any(list(row) != names for row, _ in pairs):
        raise ValueError("rows have different columns; encode them with one space")
    target_N = np.array([value for _, value in pairs])
    if float(np.ptp(target_N)) == 0:
        return Importance((), None, count, "all trials have the same value, so no choice mattered")
    table = {name: _as_numbers([row[name] for row, _ in pairs]) for name in names}
    table = {name: column_N for name, column_N in table.items() if float(np.ptp(column_N)) > 0}
    if not table:
        return Importance((), None, count, "all trials are the same candidate")
    losses_CR, explained = _losses(np.stack(list(table.values()), axis=1), target_N, repeats, seed)
    columns = [
        ColumnImportance(name, float(losses_R.mean()), float(losses_R.std()))
        for name, losses_R in zip(table, losses_CR, strict=True)
    ]
    constant = [ColumnImportance(name, 0.0, 0.0) for name in names if name not in table]
    ordered = sorted(columns, key=lambda column: -column.mean) + constant
    note = f"{count} trials; a forest explains {explained:.0%} of the variance of trials it has not seen"
    if explained <= 0:
        note = f"{count} trials; a forest explains nothing of trials it has not seen: the figures are noise"
    return Importance(tuple(ordered), explained, count, note)


def _as_numbers(cells: Sequence[float | str | None]) -> NDArray[np.float64]:
    """Return a column as numbers: texts by their order, and a value below all others where the parameter is not."""
    texts = sorted({cell for cell in cells if isinstance(cell, str)})
    numbers = [None if cell is None else float(texts.index(cell) if isinstance(cell, str) else cell) for cell in cells]
    known = [number for number in numbers if number is not None]
    low, high = (min(known), max(known)) if known else (0.0, 0.0)
    absent = low - max(high - low, 1.0)
    return np.array([absent if number is None else number for number in numbers])


def _losses(
    table_NC: NDArray[np.float64], target_N: NDArray[np.float64], repeats: int, seed: int
) -> tuple[NDArray[np.float64], float]:
    """Return loss of R² by column and repeat, averaged over folds, and R² itself; both on held-out rows."""
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.model_selection import KFold

    rng = np.random.default_rng(seed)
    columns = table_NC.shape[1]
    predicted_N = np.empty_like(target_N)
    shuffled_CRN = np.empty((columns, repeats, len(target_N)))
    for fit, held in KFold(FOLDS, shuffle=True, random_state=seed).split(table_NC):
        forest = RandomForestRegressor(n_estimators=64, min_samples_leaf=2, random_state=seed, n_jobs=1)
        forest.fit(table_NC[fit], target_N[fit])
        predicted_N[held] = forest.predict(table_NC[held])
        changed_CRNC = np.tile(table_NC[held], (columns, repeats, 1, 1))
        for column in range(columns):
            # Drawn from all rows: a fold may have as few as two.
            drawn_RN = rng.permuted(np.tile(table_NC[:, column], (repeats, 1)), axis=1)
            changed_CRNC[column, :, :, column] = drawn_RN[:, : len(held)]
        answers = forest.predict(changed_CRNC.reshape(-1, columns))
        shuffled_CRN[:, :, held] = answers.reshape(columns, repeats, len(held))
    spread = float(((target_N - target_N.mean()) ** 2).sum())
    error = float(((target_N - predicted_N) ** 2).sum())
    errors_CR = ((shuffled_CRN - target_N) ** 2).sum(axis=-1)
    return (errors_CR - error) / spread, 1 - error / spread
