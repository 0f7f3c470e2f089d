"""Summary of a flow run as a Prefect artifact and as text."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from prefect.artifacts import create_markdown_artifact

Result = Literal["ran", "unchanged", "failed", "not started"]


@dataclass(frozen=True)
class StageOutcome:
    """What happened to one step of a flow."""

    stage: str
    result: Result
    reasons: tuple[str, ...] = ()
    """Why it ran, failed or was not started."""
    seconds: float = 0.0


def table(outcomes: Sequence[StageOutcome]) -> str:
    """Return the outcomes as a Markdown table."""
    lines = ["| stage | result | seconds | why |", "|---|---|---:|---|"]
    for item in outcomes:
        why = "; ".join(item.reasons[:6]).replace("|", "\\|").replace("\n", " ")
        lines.append(f"| {item.stage} | {item.result} | {item.seconds:.1f} | {why[:400]} |")
    return "\n".join(lines)


def publish(title: str, outcomes: Sequence[StageOutcome]) -> None:
    """Store the table as an artifact of the current flow run."""
    counts = {word: sum(item.result == word for item in outcomes) for word in ("ran", "unchanged", "failed")}
    headline = ", ".join(f"{number} {word}" for word, number in counts.items() if number)
    create_markdown_artifact(f"# {title}\n\n{headline}\n\n{table(outcomes)}\n", key="summary", description=title)
