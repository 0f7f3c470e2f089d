"""The page of a search: leaderboard, front, importance, history, choices, and what became of the winner."""

import json
import math
import statistics
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.autovideo.report import charts
from training.autovideo.report.records import (
    Evaluated,
    Leaderboard,
    Trial,
    read_evaluation,
    read_leaderboard,
    short_names,
    word,
)
from training.autovideo.report.run_page import evaluated_section
from training.core.charts import number
from training.core.charts_compare import swatch
from training.core.charts_curves import line_swatch
from training.core.pages import markup, render_page, write_text

Importance = Mapping[str, tuple[float, float]]

OPEN_ROWS = 12
"""Rows of the leaderboard that are seen without a click."""
FEWEST = 8
"""Trials with a value from which the best quarter is compared with the others."""


class SearchReport:
    """Writes `page.html` and `report.json` of a search.

    Args:
        leaderboard: as `training.autovideo.report.records.Leaderboard` describes it.
        winner_yaml: the winner's document.
        evaluation: folder of the winner's evaluation on test after it was trained again; None: not done.
        importance: mean and standard deviation by choice, shares; or why there is none, e.g. too few trials.
        title: of the page.

    Raises:
        ConfigError: a leaderboard that is not one.
    """

    def __init__(
        self,
        leaderboard: Mapping[str, Any],
        winner_yaml: str = "",
        evaluation: Path | None = None,
        importance: Importance | str = "",
        title: str = "Search",
    ) -> None:
        self.board = read_leaderboard(leaderboard)
        self.winner_yaml = winner_yaml
        self.evaluation = evaluation
        self.importance = importance
        self.title = title

    def write(self, folder: Path) -> dict[str, float]:
        """Write `page.html` and `report.json` into a folder, which is made where it is missing; return the figures.

        `<metric>` of the best finished trial is left out where none has a value.

        Raises:
            ConfigError: an evaluation that cannot be read.
        """
        evaluated = read_evaluation(self.evaluation) if self.evaluation is not None else None
        figures = self.figures(evaluated)
        folder.mkdir(parents=True, exist_ok=True)
        facts = {
            "figures": figures,
            "leaderboard": self.board.model_dump(mode="json"),
            "ranking": [trial.name for trial in self.board.ranked],
            "importance": self.importance if isinstance(self.importance, str) else {
                name: list(pair) for name, pair in self.importance.items()
            },
            "winner": self.winner_yaml,
        }  # fmt: skip
        write_text(folder / "report.json", json.dumps(facts, indent=1, sort_keys=True) + "\n")
        write_text(folder / "page.html", self.page(evaluated))
        return figures

    def figures(self, evaluated: Evaluated | None) -> dict[str, float]:
        """Return counts, the best value, and what the winner reached on test."""
        board = self.board
        result = {
            "search/trials": float(len(board.trials)),
            "search/finished": float(len(board.ranked)),
            "search/failed": float(sum(trial.status == "failed" for trial in board.trials)),
            "search/refused": float(len(board.refused)),
            "search/front": float(sum(trial.front for trial in board.trials)),
        }
        if board.ranked and board.ranked[0].value is not None:
            result[f"search/best_{board.metric.rpartition('/')[2]}"] = board.ranked[0].value
        if evaluated is not None:
            kept = ("top1", "top1_low", "top1_high", "map", "majority", "samples")
            result |= {f"{evaluated.split}/{name}": evaluated.metrics[name] for name in kept}
        return result

    def page(self, evaluated: Evaluated | None) -> str:
        """Return the page."""
        board = self.board
        # What matters most stands first, where that is known.
        names = board.varied
        if not isinstance(self.importance, str):
            weight = {name: pair[0] for name, pair in self.importance.items()}
            names = sorted(names, key=lambda name: -weight.get(name, -math.inf))
        rows = [_row(board, trial, names) for trial in board.best_first]
        ranks = {trial.name: place for place, trial in enumerate(board.ranked, start=1)}
        for row in rows:
            row["rank"] = ranks.get(row["name"], "–")
        bars = "" if isinstance(self.importance, str) else charts.importance_bars(self.importance)
        why = self.importance if isinstance(self.importance, str) else ""
        return render_page(
            "training.autovideo",
            "search.html.j2",
            title=self.title,
            board=board,
            summary=_summary(board),
            notes=_notes(board, names),
            rows=rows[:OPEN_ROWS],
            more=rows[OPEN_ROWS:],
            pareto=markup(charts.pareto(board)) if board.trials else "",
            front=_front(board),
            legend=[(markup(mark), words) for mark, words in _legend(board)],
            history=markup(charts.history(board)) if board.trials else "",
            history_legend=[(markup(mark), words) for mark, words in _history_legend(board)],
            importance=markup(bars),
            no_importance="" if bars else why or "The importance of the choices was not computed.",
            parallel=markup(charts.parallel(board, names)),
            undrawn=names[charts.MOST_AXES :],
            quarters=_quarters(board, names),
            refused=[_refused(item) for item in board.refused],
            budget=[_budget(name, value) for name, value in board.budget.items()],
            winner=_row(board, board.won, sorted(board.won.choices)) if board.won else None,
            winner_yaml=self.winner_yaml.strip(),
            evaluated=evaluated_section(evaluated) if evaluated else None,
        )


# --- parts --------------------------------------------------------------------------------------


def _summary(board: Leaderboard) -> dict[str, Any]:
    best = board.ranked[0] if board.ranked else None
    counts = Counter(trial.status for trial in board.trials)
    return {
        "best": charts.value_text(board, best.value) if best else "",
        "name": best.name if best else "",
        "gmac": number(best.gmac) if best and best.gmac is not None else "",
        "trials": len(board.trials),
        "statuses": ", ".join(f"{count} {status}" for status, count in sorted(counts.items(), key=lambda c: -c[1])),
        "refused": len(board.refused),
        "front": sum(trial.front for trial in board.trials),
        "hours": _duration(sum(seconds))
        if (seconds := [t.seconds for t in board.trials if t.seconds is not None])
        else "",
    }


def _notes(board: Leaderboard, names: list[str]) -> list[str]:
    notes = []
    if not board.trials:
        notes.append("No trial was started" + (": all candidates were over a limit." if board.refused else "."))
    elif not board.ranked:
        notes.append("No trial finished with a value: there is no ranking and no winner.")
    elif len(board.ranked) == 1:
        notes.append("One trial finished: there is nothing to compare it with, and nothing can be said of its choices.")
    best = board.ranked[0] if board.ranked else None
    if best and board.won and best.value != board.won.value:
        notes.append(
            f"The winner {board.won.name} is not the trial with the best {board.metric} ({best.name}): "
            "the objectives or limits of the search weigh more than that."
        )
    if len(board.ranked) > 1 and not names:
        notes.append("All trials made the same choices: their differences are chance of training.")
    return notes


def _row(board: Leaderboard, trial: Trial, names: list[str]) -> dict[str, Any]:
    shorter = short_names(names)
    return {
        "name": trial.name,
        "won": trial.name == board.winner,
        "front": trial.front,
        "status": trial.status,
        "tag": {"finished": "passed", "failed": "failed"}.get(trial.status, "underpowered"),
        "value": charts.value_text(board, trial.value),
        "gmac": "–" if trial.gmac is None else number(trial.gmac),
        "gflop": "–" if trial.gmac is None else number(2 * trial.gmac),
        "params": "–" if trial.params is None else f"{trial.params / 1e6:.3g} M",
        "seconds": "–" if trial.seconds is None else _duration(trial.seconds),
        "choices": [
            (name, shorter[name], word(trial.choices[name])) for name in names if trial.choices.get(name) is not None
        ],
        "error": (trial.error or "").partition(":")[0].strip(),
        "message": trial.error or "",
    }


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"


def _refused(item: Any) -> dict[str, str]:
    return {
        "digest": item.digest[:10],
        "gmac": "–" if item.gmac is None else number(item.gmac),
        "gflop": "–" if item.gmac is None else number(2 * item.gmac),
        "params": "–" if item.params is None else f"{item.params / 1e6:.3g} M",
        "why": item.why,
    }


def _budget(name: str, value: Any) -> dict[str, Any]:
    """Return a row; `{used, limit}` gets a bar."""
    if isinstance(value, Mapping) and "used" in value:
        used, limit = value["used"], value.get("limit")
        share = min(1.0, used / limit) if limit else None
        text = _plain(used) + (f" of {_plain(limit)}" if limit is not None else ", no limit")
        return {"name": name, "text": text, "width": None if share is None else round(180 * share)}
    return {"name": name, "text": _plain(value), "width": None}


def _plain(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else word(value)


def _legend(board: Leaderboard) -> list[tuple[str, str]]:
    drawn = [trial for trial in board.trials if trial.scored and trial.gmac]
    front = [trial for trial in drawn if trial.front]
    entries = [(swatch("var(--two)", "diamond"), "winner")] if board.won in drawn else []
    if any(trial.name != board.winner for trial in front):
        entries.append((swatch("var(--one)"), "on the front"))
    if len(front) > 1:
        entries.append((line_swatch("var(--soft)", True), "front"))
    if any(not trial.front and trial.name != board.winner for trial in drawn):
        entries.append((swatch("var(--five)"), "beaten by another" if front else "trial"))
    if any(trial.status != "finished" for trial in drawn):
        entries.append((swatch("var(--five)", hollow=True), "not trained to the end"))
    return entries


def _history_legend(board: Leaderboard) -> list[tuple[str, str]]:
    entries = [(line_swatch("var(--one)"), "best finished so far")] if board.ranked else []
    entries += [(swatch("var(--two)", "diamond"), "winner")] if board.won else []
    if any(trial.scored and trial.name != board.winner for trial in board.trials):
        entries.append((swatch("var(--five)"), "trial"))
    if any(not trial.scored for trial in board.trials):
        entries.append((swatch("var(--bad)", "cross"), "without a value"))
    return entries


def _front(board: Leaderboard) -> list[dict[str, Any]]:
    known = [trial for trial in board.trials if trial.front]
    return [_row(board, trial, []) for trial in sorted(known, key=lambda trial: trial.gmac or 0.0)]


def _quarters(board: Leaderboard, names: list[str]) -> dict[str, Any] | None:
    """Return what the best quarter chose, beside the others; nothing for few trials."""
    if len(board.ranked) < FEWEST or not names:
        return None
    cut = math.ceil(len(board.ranked) / 4)
    best, rest = board.ranked[:cut], board.ranked[cut:]
    rows = [{"name": name, "best": _told(best, name), "rest": _told(rest, name)} for name in names]
    return {"rows": rows, "best": len(best), "rest": len(rest)}


def _told(trials: list[Trial], name: str) -> str:
    """Return counts of words, or median and range of numbers that take many values."""
    values = [trial.choices.get(name) for trial in trials]
    there = [value for value in values if value is not None]
    numbers = [value for value in there if isinstance(value, int | float) and not isinstance(value, bool)]
    if numbers and len(numbers) == len(there) and len(set(numbers)) > 4:
        text = f"median {word(float(statistics.median(numbers)))} ({word(min(numbers))} to {word(max(numbers))})"
        missing = len(values) - len(there)
        return text + (f", {missing} without" if missing else "")
    counts = Counter("without" if value is None else word(value) for value in values)
    return ", ".join(f"{text} × {count}" for text, count in counts.most_common())
