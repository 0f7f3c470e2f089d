"""Charts of searches: candidates in the accuracy-cost plane, history of a search, distribution of options.

Thousands of candidates are drawn as one path per colour, so they have no `<title>` each.
"""

import math
from collections.abc import Sequence
from html import escape

from training.core.charts import Frame, number, svg, ticks
from training.core.charts_compare import CHARACTER, swatch
from training.movinet.report.charts import frame_y, percent
from training.movinet.report.drawing import kernel_text
from training.movinet.report.search_records import Candidate, Search
from training.movinet.report.searches import Group, OptionShares

UNITS = {"gmac": "GMAC per video", "params": "parameters", "state_mb": "state, MB", "latency_ms": "ms per video"}
COLOURS = ("var(--one)", "var(--two)", "var(--three)", "var(--four)", "var(--bad)", "var(--warn)")
"""Of groups of searches; uniform draws are grey."""
MOST_NAMED = 4
"""Windows of wanted costs whose numbers are written."""
MOST_MARKS = 6000
"""Candidates of a chart; of more, every second, third, … is drawn."""


def scored(search: Search) -> list[tuple[Candidate, float]]:
    """Return candidates with their inherited accuracies; failed ones have none."""
    return [(candidate, candidate.top1) for candidate in search.candidates if candidate.top1 is not None]


def colours(groups: Sequence[Group]) -> dict[str, str]:
    """Return a colour per group of searches."""
    told = [group.name for group in groups if not group.uniform]
    chosen = {name: COLOURS[place % len(COLOURS)] for place, name in enumerate(told)}
    return {group.name: chosen.get(group.name, "var(--five)") for group in groups}


def kinds_of(groups: Sequence[Group]) -> list[str]:
    """Return the quantities that searches aimed at; candidates of one are in one chart."""
    return sorted({search.kind for group in groups for search in group.searches})


def every(groups: Sequence[Group], kind: str) -> int:
    """Return which candidates are drawn: 1 all, 2 every second one, …"""
    searches = [search for group in groups for search in group.searches if search.kind == kind]
    return max(1, math.ceil(sum(len(scored(search)) for search in searches) / MOST_MARKS))


def cloud(groups: Sequence[Group], kind: str, *, width: int = 1080, height: int = 440) -> str:
    """Draw inherited accuracy against the targeted cost: candidates hollow, chosen ones filled, the window dotted."""
    searches = [(group, search) for group in groups for search in group.searches if search.kind == kind]
    step = every(groups, kind)
    drawn = [
        (group, search, candidate, top1)
        for group, search in searches
        for candidate, top1 in [
            item for i, item in enumerate(scored(search)) if i % step == 0 or is_found(search, item[0])
        ]
    ]
    if not drawn:
        return '<p class="none">No candidate was scored.</p>'
    windows = sorted({(s.target * (1 - s.tolerance), s.target, s.target * (1 + s.tolerance)) for _, s in searches})
    costs = [candidate.cost for _, _, candidate, _ in drawn] + [cost for window in windows for cost in window]
    values = [top1 for *_, top1 in drawn]
    pad, lift = 0.06 * (max(costs) - min(costs)), max(0.08 * (max(values) - min(values)), 0.01)
    named = windows if len(windows) <= MOST_NAMED else []
    rules = 36 + 16 * (len(named) - 1)
    frame = Frame(
        width,
        height,
        max(min(costs) - pad, 0.0),
        max(costs) + pad,
        max(0.0, min(values) - lift),
        min(1.0, max(values) + lift),
        left=56,
        top=rules + 8,
        bottom=44,
    )
    parts = frame.axes(UNITS.get(kind, kind), "", percent=True)
    parts.append(f'<text class="axis" x="{frame.left}" y="14">top-1 with inherited weights</text>')
    for window in windows:
        for cost in window[::2]:
            x = frame.px(cost)
            parts.append(f'<line class="rule" x1="{x:.1f}" x2="{x:.1f}" y1="{rules}" y2="{height - frame.bottom}"/>')
    for row, window in enumerate(named):
        tolerance = f"{number(window[1])} ± {100 * (window[2] / window[1] - 1):.3g} %"
        half = CHARACTER * len(tolerance) / 2
        middle = min(max(frame.px(window[1]), frame.left + half), width - frame.right - half)
        parts.append(f'<text class="tick" x="{middle:.1f}" y="{32 + 16 * row}" text-anchor="middle">{tolerance}</text>')
    shade = colours(groups)
    # The searches themselves lie above their controls.
    for group in reversed(groups):
        rings = [f"{_ring(frame.px(c.cost), frame.py(top1))}" for owner, _, c, top1 in drawn if owner is group]
        if rings:
            style = f"color:{shade[group.name]}"
            parts.append(f'<path class="rings" style="{style}" d="{"".join(rings)}"/>')
    for group, search, candidate, top1 in drawn:
        if is_found(search, candidate):
            words = f"{search.name} chose {candidate.name}: {percent(top1)} inherited, {number(candidate.cost)}"
            parts.append(
                f'<g class="point" style="color:{shade[group.name]}"><title>{escape(words)}</title>'
                f'<circle cx="{frame.px(candidate.cost):.1f}" cy="{frame.py(top1):.1f}" r="5"/></g>'
            )
    return svg(width, height, parts, "inherited accuracy against cost")


def is_found(search: Search, candidate: Candidate) -> bool:
    """Whether a search chose a candidate."""
    return candidate.name == search.found


def _ring(x: float, y: float) -> str:
    return f"M{x - 2.4:.1f} {y:.1f}a2.4 2.4 0 1 0 4.8 0a2.4 2.4 0 1 0-4.8 0"


def cloud_legend(groups: Sequence[Group]) -> list[tuple[str, str]]:
    """Return marks and words of the legend of `cloud`."""
    shade = colours(groups)
    return [(swatch(shade[g.name], hollow=True), g.name) for g in groups if g.searches]


# --- history ------------------------------------------------------------------------------------


def value_range(searches: Sequence[Search]) -> tuple[float, float]:
    """Return bounds of the accuracies of several searches, for panels that compare."""
    values = [top1 for search in searches for _, top1 in scored(search)]
    if not values:
        return 0.0, 1.0
    pad = max(0.06 * (max(values) - min(values)), 0.01)
    return max(0.0, min(values) - pad), min(1.0, max(values) + pad)


def history(search: Search, bounds: tuple[float, float], *, width: int = 350, height: int = 320) -> str:
    """Draw a search in its order: accuracies with the best so far at the wanted cost, and below the error of the cost.

    Args:
        search: the search.
        bounds: of the accuracy axis.
        width: pixels.
        height: pixels.
    """
    found = scored(search)
    if not found:
        return f'<p class="none">{escape(search.name)}: none of its {len(search.candidates)} candidates was scored.</p>'
    first, last = min(c.order for c, _ in found), max(c.order for c, _ in found)
    last = max(last, first + 1)
    upper = Frame(width, 196, first, last, *bounds, left=52, right=10, top=30, bottom=8, y_ticks=4)
    errors = [candidate.cost / search.target - 1 for candidate, _ in found]
    reach = 1.15 * max(search.tolerance, *(abs(error) for error in errors))
    lower = Frame(width, height, first, last, -reach, reach, left=52, right=10, top=216, bottom=36, y_ticks=3)
    parts = [f'<text class="major" x="{upper.left}" y="14">{escape(search.name)}</text>']
    parts += frame_y(upper)
    parts += frame_y(lower)
    parts.append(f'<text class="tick" x="{upper.left}" y="211">cost / target − 1</text>')
    parts.append(
        f'<text class="tick" x="{(upper.left + width) / 2:.0f}" y="{height - 4}" text-anchor="middle">candidate</text>'
    )
    for tick in ticks(first, last, 4):
        x = lower.px(tick)
        parts.append(f'<text class="tick" x="{x:.1f}" y="{height - 20}" text-anchor="middle">{number(tick)}</text>')
    for edge in (-search.tolerance, search.tolerance):
        y = lower.py(edge)
        parts.append(f'<line class="rule" x1="{lower.left}" x2="{width - lower.right}" y1="{y:.1f}" y2="{y:.1f}"/>')
    step = max(1, math.ceil(len(found) / MOST_MARKS))
    shown = found[::step]
    dots = "".join(f"M{upper.px(c.order):.1f} {upper.py(top1):.1f}h0" for c, top1 in shown)
    parts.append(f'<path class="dots" d="{dots}"/>')
    wrong = "".join(f"M{lower.px(c.order):.1f} {lower.py(c.cost / search.target - 1):.1f}h0" for c, _ in shown)
    parts.append(f'<path class="dots" d="{wrong}"/>')
    parts += _best_so_far(search, upper, last)
    parts += _baseline(search, upper)
    for candidate, top1 in found:
        if is_found(search, candidate):
            words = f"chosen: {candidate.name}, {percent(top1)} inherited"
            parts.append(
                f'<g class="point" style="color:var(--four)"><title>{escape(words)}</title>'
                f'<circle cx="{upper.px(candidate.order):.1f}" cy="{upper.py(top1):.1f}" r="4.5"/></g>'
            )
    return svg(width, height, parts, f"history of {search.name}")


def _best_so_far(search: Search, frame: Frame, last: int) -> list[str]:
    steps: list[str] = []
    best = -math.inf
    for candidate, top1 in scored(search):
        if search.inside(candidate) and top1 > best:
            x = frame.px(candidate.order)
            steps += [f"{x:.1f},{frame.py(best):.1f}"] if steps else []
            steps.append(f"{x:.1f},{frame.py(top1):.1f}")
            best = top1
    if not steps:
        return []
    steps.append(f"{frame.px(last):.1f},{frame.py(best):.1f}")
    title = f"best so far at the wanted cost: {percent(best)}"
    return [f'<polyline class="curve s0" points="{" ".join(steps)}"><title>{title}</title></polyline>']


def _baseline(search: Search, frame: Frame) -> list[str]:
    """Return the policy's running mean of rewards; rewards that are no accuracies leave the plot."""
    steps = [
        f"{frame.px(c.order):.1f},{frame.py(c.baseline):.1f}"
        for c in search.candidates
        if c.baseline is not None and frame.y0 <= c.baseline <= frame.y1
    ]
    if len(steps) < 2:
        return []
    return [f'<polyline class="curve s1" points="{" ".join(steps)}"><title>baseline of rewards</title></polyline>']


# --- options ------------------------------------------------------------------------------------


def option_bars(options: Sequence[OptionShares], label: str, *, width: int = 1080, height: int = 190) -> str:
    """Draw how often each option was taken, by all candidates (pale) and by the best quarter; dashes: uniform draws."""
    if not options:
        return ""
    slots = sum(len(kind.names) for kind in options) + 0.8 * (len(options) - 1)
    top = max(value for kind in options for value in (*kind.all, *kind.best, kind.uniform or 0.0))
    frame = Frame(width, height, 0, slots, 0.0, 1.12 * top, left=52, right=8, top=24, bottom=26, y_ticks=4)
    parts = frame_y(frame)
    base, start = height - frame.bottom, 0.0
    for kind in options:
        parts.append(f'<text class="axis" x="{frame.px(start) + 6:.1f}" y="14">{kind.kind}s</text>')
        for place, name in enumerate(kind.names):
            left, wide = frame.px(start + place), frame.px(start + place + 1) - frame.px(start + place)
            words = (
                f"{name}: {percent(kind.all[place])} of all layers, {percent(kind.best[place])} of the best quarter's"
            )
            bars = ""
            for offset, value, style in ((0.14, kind.all[place], "pale"), (0.5, kind.best[place], "full")):
                y = frame.py(value)
                bars += (
                    f'<rect class="{style}" x="{left + offset * wide:.1f}" y="{y:.1f}" width="{0.34 * wide:.1f}" '
                    f'height="{base - y:.1f}"/>'
                )
            parts.append(f'<g class="bars"><title>{escape(words)}</title>{bars}</g>')
            text = escape(_option_text(kind.kind, name))
            parts.append(
                f'<text class="tick" x="{left + wide / 2:.1f}" y="{base + 16}" text-anchor="middle">{text}</text>'
            )
        if kind.uniform is not None:
            y, end = frame.py(kind.uniform), frame.px(start + len(kind.names))
            parts.append(
                f'<line class="expected" x1="{frame.px(start):.1f}" x2="{end:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
            )
        start += len(kind.names) + 0.8
    return svg(width, height, parts, f"options of {label}")


def _option_text(kind: str, name: str) -> str:
    if kind == "expansion":
        return f"× {name}"
    if kind == "gate":
        return name
    temporal, spatial, _ = (int(part) for part in name.split("x"))
    return kernel_text((temporal, spatial))
