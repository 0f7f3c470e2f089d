"""How a version did in each class, for its page."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.core.charts import confusion
from training.core.gate import wilson_interval
from training.core.pages import markup, percent, percent_range

__all__ = ["by_class"]


def by_class(arrays: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """Return a row per class and the confusion of the predictions; nothing where videos have several labels."""
    label, scores = arrays["label"], arrays["scores"]
    if label.ndim != 1:
        return {}
    classes = [str(name) for name in arrays["classes"]]
    matrix = np.zeros((len(classes), len(classes)), np.int64)
    np.add.at(matrix, (label, scores.argmax(axis=1)), 1)
    rows = []
    for i, name in enumerate(classes):
        total, correct = int(matrix[i].sum()), int(matrix[i, i])
        others = matrix[i].copy()
        others[i] = 0
        mistaken = [f"{classes[j]} ({others[j]})" for j in np.argsort(-others, kind="stable")[:2] if others[j]]
        rows.append(
            {
                "name": name,
                "accuracy": percent(correct / total) if total else "–",
                "width": round(180 * correct / total) if total else 0,
                "interval": percent_range(wilson_interval(correct, total)) if total else "–",
                "count": total,
                "mistaken": ", ".join(mistaken),
            }
        )
    # A matrix of hundreds of classes cannot be read; the table above says the same.
    return {"per_class": rows, "confusion": markup(confusion(matrix, classes)) if len(classes) <= 40 else None}
