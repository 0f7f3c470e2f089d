"""Detection metrics (placeholder until the metrics branch is merged)."""

from training.core.box_results import BoxResults


def box_metrics(results: BoxResults, classes: tuple[str, ...]) -> dict[str, float]:
    """Return nothing yet."""
    raise NotImplementedError
