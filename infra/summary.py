"""Closing words of `make demo`: what was learned at what cost, and where to go from here."""

import json
import sys
from pathlib import Path

from infra.settings import Settings

ROWS = (
    ("learned policy", ""),
    ("random patches", "random"),
    ("centre patches", "center"),
    ("full-frame local net", "fullframe"),
)
"""Title and arm, as in the keys of metrics.json: `test/top1_random`; no arm is the main model."""

EVALUATION = "adafocus_eval"


def arms(metrics: dict[str, float]) -> list[tuple[str, float, float | None]]:
    """Return (title, accuracy, GMAC per video) of the main model and of each comparison that was evaluated.

    Raises:
        ValueError: the main model's accuracy is missing.
    """
    if "test/top1" not in metrics:
        raise ValueError(f"metrics have no test/top1, only {', '.join(sorted(metrics)) or 'nothing'}")
    result = []
    for title, arm in ROWS:
        suffix = f"_{arm}" if arm else ""
        if f"test/top1{suffix}" in metrics:
            result.append((title, metrics[f"test/top1{suffix}"], metrics.get(f"test/gmac_per_video{suffix}")))
    return result


def text(settings: Settings, dataset: str) -> str:
    """Return the summary of a data set's evaluated AdaFocus model.

    Raises:
        FileNotFoundError: it has not been evaluated.
    """
    path = settings.runs / dataset / EVALUATION / "metrics.json"
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; run `fovea reproduce {dataset}` first")
    lines = ["", f"{dataset}: accuracy and cost per video on the test split", ""]
    lines += [f"  {'':<22}{'top-1':>8}{'GMAC':>10}{'GFLOP':>10}"]
    for title, accuracy, gmac in arms(json.loads(path.read_text())):
        cost = f"{gmac:>10.4f}{2 * gmac:>10.4f}" if gmac is not None else f"{'—':>10}{'—':>10}"
        lines.append(f"  {title:<22}{100 * accuracy:>7.1f}%{cost}")
    page = settings.reports / "index.html"
    shown = _relative(page, settings.root) if page.exists() else "not written; `fovea report` writes it"
    lines += ["", f"  report page     {shown}"]
    lines += [
        "  MLflow, Prefect make ui           (then http://127.0.0.1:5000 and http://127.0.0.1:4200)",
        f"  your own file   .venv/bin/fovea predict adafocus-{dataset}@champion <video or folder>",
        "  your own data   .venv/bin/fovea data init <folder>",
    ]
    return "\n".join(lines)


def _relative(path: Path, root: Path) -> str:
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


def main(arguments: list[str] | None = None) -> int:
    """Print the summary."""
    given = sys.argv[1:] if arguments is None else arguments
    settings = Settings()
    try:
        print(text(settings, given[0] if given else "demo"))
    except (FileNotFoundError, ValueError, json.JSONDecodeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
