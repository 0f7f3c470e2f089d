"""Charts of a search: accuracy against cost, best so far, importance of choices, and choices side by side.

Like `training.core.charts`: SVG text, colours from the page's style sheet, a `<title>` on every mark.
"""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from training.autovideo.report.records import Leaderboard, Trial, short_names, word
from training.core.charts import number, svg, ticks
from training.core.charts_compare import CHARACTER, Mark
from training.core.charts_curves import Line, plane

MOST_LABELS = 8
"""Trials of the front that are named; of more only the winner."""
MOST_AXES = 9
DECADE = 10.0


def value_text(board: Leaderboard, value: float | None) -> str:
    """Return a value of the metric as the page writes it."""
    if value is None:
        return "–"
    return f"{100 * value:.1f} %" if board.shares else number(value)


# --- accuracy and cost --------------------------------------------------------------------------


def pareto(board: Leaderboard, *, width: int = 1080, height: int = 440) -> str:
    """Draw the metric against GMAC per video: all trials, the front joined, the winner marked.

    The cost axis is logarithmic when it spans more than a decade.
    """
    points = [(trial, trial.gmac, trial.value) for trial in board.trials if trial.scored and trial.gmac]
    known = [(trial, gmac, value) for trial, gmac, value in points if value is not None and gmac > 0]
    if not known:
        return '<p class="none">No trial has both a value and a cost.</p>'
    costs = [gmac for _, gmac, _ in known]
    log = max(costs) / min(costs) > DECADE
    front = sorted((p for p in known if p[0].front), key=lambda p: p[1])
    named = {trial.name for trial, _, _ in front} if len(front) <= MOST_LABELS else set()
    marks = []
    for trial, gmac, value in known:
        won = trial.name == board.winner
        status = "" if trial.status == "finished" else f", {trial.status}"
        title = f"{trial.name}: {value_text(board, value)}, {number(gmac)} GMAC ({number(2 * gmac)} GFLOP){status}"
        colour = "var(--two)" if won else "var(--one)" if trial.front else "var(--five)"
        label = f"{trial.name}, winner" if won else trial.name if trial.name in named else ""
        hollow = trial.status != "finished"
        marks.append(Mark(_x(gmac, log), value, title, label, colour, "diamond" if won else "circle", hollow))
    # The winner lies above what has the same place.
    marks.sort(key=lambda mark: mark.shape == "diamond")
    steps: list[tuple[float, float]] = []
    for place, (_, gmac, value) in enumerate(front):
        if place:
            steps.append((_x(gmac, log), steps[-1][1]))
        steps.append((_x(gmac, log), value))
    lines = [Line("front", steps, "var(--soft)", dashed=True)] if len(front) > 1 else []
    return plane(
        lines,
        marks,
        "GMAC per video (1 GFLOP = 2 GMAC)" + (", logarithmic" if log else ""),
        board.metric,
        x_ticks=_log_ticks(min(costs), max(costs)) if log else (),
        percent=board.shares,
        width=width,
        height=height,
    )


def _x(gmac: float, log: bool) -> float:
    return math.log10(gmac) if log else gmac


def _log_ticks(low: float, high: float) -> list[tuple[float, str]]:
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if len(exponents) <= 4 else (1,)
    marks = [factor * 10.0**exponent for exponent in exponents for factor in factors]
    first = max((mark for mark in marks if mark <= low), default=low)
    last = min((mark for mark in marks if mark >= high), default=high)
    return [(math.log10(mark), number(mark)) for mark in marks if first <= mark <= last]


# --- history ------------------------------------------------------------------------------------


def history(board: Leaderboard, *, width: int = 1080, height: int = 300) -> str:
    """Draw each trial in the order of its start, and the best of those finished so far; failed ones are crosses."""
    values = [trial.value for trial in board.trials if trial.scored and trial.value is not None]
    if not values:
        return '<p class="none">No trial has a value.</p>'
    low, high = min(values), max(values)
    pad = max(0.1 * (high - low), 0.01 if board.shares else 0.05 * abs(high) or 0.01)
    low, high = low - pad, high + pad
    if board.shares:
        low, high = max(0.0, low), min(1.0, high)
    marks, best, steps = [], None, list[tuple[float, float]]()
    for place, trial in enumerate(board.trials, start=1):
        if not trial.scored or trial.value is None:
            words = f"{trial.name}: {trial.status}" + (f", {trial.error}" if trial.error else "")
            marks.append(Mark(place, low + 0.02 * (high - low), words, colour="var(--bad)", shape="cross"))
            continue
        won = trial.name == board.winner
        title = f"{trial.name}: {value_text(board, trial.value)}, {trial.status}"
        colour, shape = ("var(--two)", "diamond") if won else ("var(--five)", "circle")
        marks.append(Mark(place, trial.value, title, colour=colour, shape=shape, hollow=trial.status != "finished"))
        better = best is None or (trial.value > best if board.mode == "max" else trial.value < best)
        if trial.status == "finished" and better:
            steps += [(place, best)] if best is not None else []
            best = trial.value
            steps.append((place, best))
    if best is not None:
        steps.append((len(board.trials), best))
    words = f"best so far: {value_text(board, best)}"
    places = [tick for tick in ticks(1, len(board.trials), 10) if float(tick).is_integer() and tick >= 1]
    named = sorted({1, *(int(tick) for tick in places)})
    if len(board.trials) not in named:
        # The last one is always named; a round number next to it makes room.
        named = [tick for tick in named if len(board.trials) - tick > 0.04 * len(board.trials)] + [len(board.trials)]
    return plane(
        [Line(words, steps, "var(--one)")] if len(steps) > 1 else [],
        marks,
        "trial, in the order of their starts",
        board.metric,
        x_ticks=[(tick, str(tick)) for tick in named],
        percent=board.shares,
        y_range=(low, high),
        width=width,
        height=height,
    )


# --- importance ---------------------------------------------------------------------------------


def importance_bars(values: Mapping[str, tuple[float, float]], *, width: int = 860) -> str:
    """Draw the importance of each choice, largest first, with plus and minus a standard deviation."""
    rows = sorted(values.items(), key=lambda item: -item[1][0])
    if not rows:
        return ""
    left = 14 + min(CHARACTER * max(len(name) for name, _ in rows), 320.0)
    right, line = width - 110, 24
    top = max(max(mean + std for _, (mean, std) in rows), 1e-9)
    scale = (right - left) / top
    parts = []
    base = 6 + line * len(rows)
    for tick in ticks(0, top, 6):
        x = left + tick * scale
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="4" y2="{base}"/>')
        text = f"{100 * tick:.3g} %"
        parts.append(f'<text class="tick" x="{x:.1f}" y="{base + 15}" text-anchor="middle">{text}</text>')
    for place, (name, (mean, std)) in enumerate(rows):
        y = 6 + line * place
        shown = shortened(name, int((left - 14) / CHARACTER))
        words = escape(f"{name}: {mean:.1%} ± {std:.1%}")
        low, high = (left + max(edge, 0.0) * scale for edge in (mean - std, mean + std))  # names stand left of 0
        parts.append(
            f'<g style="color:var(--one)"><title>{words}</title>'
            f'<rect class="stick" x="{left:.1f}" y="{y + 5}" width="{max(mean, 0.0) * scale:.1f}" height="14"/>'
            f'<line class="zero" x1="{low:.1f}" x2="{high:.1f}" y1="{y + 12}" y2="{y + 12}"/></g>'
            f'<text x="{left - 8:.1f}" y="{y + 16}" text-anchor="end">{escape(shown)}'
            f"<title>{escape(name)}</title></text>"
            f'<text class="tick" x="{high + 8:.1f}" y="{y + 16}">{100 * mean:.1f} ± {100 * std:.1f} %</text>'
        )
    middle = (left + right) / 2
    parts.append(f'<text class="axis" x="{middle:.0f}" y="{base + 36}" text-anchor="middle">importance</text>')
    return svg(width, base + 42, parts, "importance of the choices")


def shortened(text: str, most: int) -> str:
    """Return a text of at most so many characters: of a dotted name the end is kept, which tells names apart."""
    return text if len(text) <= most else "…" + text[-max(most - 1, 1) :]


# --- parallel coordinates -----------------------------------------------------------------------


class _Axis:
    """An upright axis: places of the values of one choice, from 0 (bottom) to 1."""

    def __init__(self, name: str, values: Sequence[Any]) -> None:
        self.name = name
        there = [value for value in values if value is not None]
        self.absent = len(there) < len(values)
        self.numeric = bool(there) and all(isinstance(v, int | float) and not isinstance(v, bool) for v in there)
        self.floor = 0.14 if self.absent else 0.0
        self.log = self.numeric and min(there) > 0 and max(there) / min(there) > DECADE
        self.words = sorted({word(value) for value in there})
        numbers = [self._scaled(value) for value in there] if self.numeric else []
        self.low, self.high = (min(numbers), max(numbers)) if numbers else (0.0, 0.0)
        self.ends = [(0.0, min(there)), (1.0, max(there))] if numbers and self.high > self.low else []
        if self.numeric and len(set(there)) <= 5:
            self.ends = [(self._share(value), value) for value in sorted(set(there))]

    def _scaled(self, value: Any) -> float:
        return math.log10(value) if self.log else float(value)

    def _share(self, value: Any) -> float:
        if self.numeric:
            return (self._scaled(value) - self.low) / (self.high - self.low) if self.high > self.low else 0.5
        return (self.words.index(word(value)) + 0.5) / len(self.words)

    def place(self, value: Any) -> float:
        return 0.0 if value is None else self.floor + (1 - self.floor) * self._share(value)

    def labels(self) -> list[tuple[float, str]]:
        marks = [(0.0, "–")] if self.absent else []
        if self.numeric:
            return marks + [(self.floor + (1 - self.floor) * share, word(value)) for share, value in self.ends]
        every = math.ceil(len(self.words) / 14)
        rows = [((i + 0.5) / len(self.words), text) for i, text in enumerate(self.words) if i % every == 0]
        return marks + [(self.floor + (1 - self.floor) * share, text) for share, text in rows]


def parallel(board: Leaderboard, names: Sequence[str], *, width: int = 1080, height: int = 340) -> str:
    """Draw the choices of each trial with a value as a line over upright axes, the metric last.

    Args:
        board: the search.
        names: of the choices, from left to right; at most `MOST_AXES` are drawn.
        width: pixels.
        height: pixels.
    """
    trials = [trial for trial in board.best_first if trial.scored]
    names = list(names)[:MOST_AXES]
    if len(trials) < 2 or not names:
        return ""
    axes = [_Axis(name, [trial.choices.get(name) for trial in trials]) for name in names]
    axes.append(_Axis(board.metric, [trial.value for trial in trials]))
    left, top, bottom = 30.0, 46.0, height - 16.0
    step = (width - left - 96) / (len(axes) - 1)

    def at(axis: int, share: float) -> tuple[float, float]:
        return left + axis * step, bottom - share * (bottom - top)

    quarter = {trial.name for trial in board.ranked[: max(1, math.ceil(len(board.ranked) / 4))]}
    parts = []
    for trial in reversed(trials):  # the best lie above
        won, good = trial.name == board.winner, trial.name in quarter
        row: list[Any] = [trial.choices.get(name) for name in names] + [trial.value]
        path = " ".join("{:.1f},{:.1f}".format(*at(i, axes[i].place(value))) for i, value in enumerate(row))
        colour = "var(--two)" if won else "var(--one)" if good else "var(--five)"
        style = f"color:{colour};stroke-width:{2.6 if won else 1.5 if good else 1};opacity:{1 if good or won else 0.4}"
        title = escape(_line_title(board, trial, names))
        parts.append(f'<polyline class="trace" style="{style}" points="{path}"><title>{title}</title></polyline>')
    shorter = short_names(names)
    # Names stand in two rows, so each has the room of two axes.
    room = int(2 * step / CHARACTER) - 2
    for i, axis in enumerate(axes):
        x, _ = at(i, 0)
        parts.append(f'<line class="zero" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}"/>')
        text, y = shortened(shorter.get(axis.name, axis.name), room), 14 if i % 2 == 0 else 32
        anchor = "start" if i == 0 else "end" if i == len(axes) - 1 else "middle"
        place = x + (-24 if i == 0 else 90 if i == len(axes) - 1 else 0)
        parts.append(
            f'<text class="axis" x="{place:.1f}" y="{y}" text-anchor="{anchor}">{escape(text)}'
            f"<title>{escape(axis.name)}</title></text>"
        )
        fits = max(int((step if i < len(axes) - 1 else 96) / CHARACTER) - 2, 4)
        for share, words in axis.labels():
            _, y_label = at(i, share)
            # Of the name of a primitive the end says which.
            last = words.rpartition("/")[2]
            shown = last if len(last) <= fits else last[: fits - 1] + "…"
            if axis.name == board.metric and board.shares and i == len(axes) - 1:
                shown = f"{100 * float(words):.3g} %"
            parts.append(
                f'<text class="tick note" x="{x + 5:.1f}" y="{y_label + 4:.1f}">{escape(shown)}'
                f"<title>{escape(words)}</title></text>"
            )
    return svg(width, height, parts, "choices of the trials")


def _line_title(board: Leaderboard, trial: Trial, names: Sequence[str]) -> str:
    chosen = ", ".join(f"{name} {word(trial.choices.get(name))}" for name in names)
    return f"{trial.name}: {value_text(board, trial.value)}; {chosen}"
