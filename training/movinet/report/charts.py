"""Charts of the report: accuracy against cost, differences, ranks, and the stream after each frame."""

from collections.abc import Sequence
from html import escape

from training.core.charts import Frame, Point, frontier, svg, ticks
from training.core.charts_compare import CHARACTER, SHAPES, Interval, Mark, forest, scatter, swatch
from training.movinet.report.paired import Comparison, accuracy
from training.movinet.report.records import Net
from training.movinet.report.search_records import UNIFORM
from training.movinet.report.searches import RankCorrelation
from training.movinet.report.streams import Stream

QUANTITIES = {"gmac": "GMAC per video", "params": "parameters, millions", "state_bytes": "state of a stream, kB"}
SCALES = {"gmac": 1.0, "params": 1e-6, "state_bytes": 1e-3}
MOST_LABELS = 14


def percent(value: float) -> str:
    """Return a share in per cent."""
    return f"{100 * value:.1f} %"


def points(value: float) -> str:
    """Return a difference of shares in points."""
    return f"{100 * value:+.1f}"


def interval(low: float, high: float) -> str:
    """Return the bounds of a share in per cent."""
    return f"{100 * low:.1f} to {100 * high:.1f} %"


# --- accuracy against cost ----------------------------------------------------------------------


def pareto(nets: Sequence[Net], quantity: str, *, width: int = 1080, height: int = 420) -> str:
    """Draw accuracy against a cost of trained nets with 95 % intervals and the front of what no other beats in both.

    Args:
        nets: of one split; those that lack the quantity are left out.
        quantity: gmac, params or state_bytes.
        width: pixels.
        height: pixels.
    """
    scale = SCALES[quantity]
    known = [net for net in nets if getattr(net, quantity)]
    front = frontier([Point(scale * getattr(net, quantity), net.top1, net.name) for net in known])
    on_front = {point.label for point in front}
    engines = engines_of(nets)
    labelled = known if len(known) <= MOST_LABELS else [n for n in known if n.name in on_front or not _is_control(n)]
    named = {net.name for net in labelled[:MOST_LABELS]}
    marks = []
    for net in known:
        share, cost = accuracy([net]), scale * getattr(net, quantity)
        words = (
            f"{net.name}: {percent(net.top1)} ({interval(share.low, share.high)}), {cost:.4g} {QUANTITIES[quantity]}"
        )
        label = net.name if net.name in named else ""
        marks.append(
            Mark(cost, net.top1, words, label, colour_of(net), shape_of(net, engines), False, share.low, share.high)
        )
    line = [(point.x, point.y) for point in front]
    return scatter(marks, QUANTITIES[quantity], "top-1", line=line, width=width, height=height)


def engines_of(nets: Sequence[Net]) -> list[str]:
    """Return the engines of found nets, each of which has a shape."""
    return sorted({str(net.config["engine"]) for net in nets if net.stage == "movinet_found"})


def _is_control(net: Net) -> bool:
    return net.stage == "movinet_found" and (net.config["control"] != "none" or net.config["engine"] == UNIFORM)


def colour_of(net: Net) -> str:
    """Return the colour of a net by where it comes from."""
    if net.stage == "movinet_found":
        return "var(--five)" if _is_control(net) else "var(--four)"
    if "stream" in net.stage:
        return "var(--two)"
    return "var(--one)" if net.stage in ("movinet_train", "movinet_eval") else "var(--three)"


def shape_of(net: Net, engines: Sequence[str]) -> str:
    """Return the shape of a net: a circle, or that of the engine which found it."""
    if net.stage != "movinet_found":
        return SHAPES[0]
    return SHAPES[1 + engines.index(str(net.config["engine"])) % (len(SHAPES) - 1)]


def legend(nets: Sequence[Net]) -> list[tuple[str, str]]:
    """Return marks and words of the legend of `pareto`."""
    entries: dict[str, str] = {}
    engines = engines_of(nets)
    for net in nets:
        kind = net.stage.removeprefix("movinet_").removesuffix("_eval")
        words = {"train": "hand-made", "eval": "hand-made", "half": "half frame rate"}.get(kind, kind)
        if net.stage == "movinet_found":
            words = f"{net.config['engine']}{', control' * _is_control(net)}"
        entries.setdefault(words, swatch(colour_of(net), shape_of(net, engines)))
    return [(mark, words) for words, mark in entries.items()]


# --- differences --------------------------------------------------------------------------------


def differences(rows: Sequence[Comparison], x_label: str, *, minor: Sequence[bool] = (), second: bool = False) -> str:
    """Draw paired differences with their intervals.

    Args:
        rows: from top to bottom.
        x_label: of what minus what.
        minor: rows that are drawn indented; none by default.
        second: name rows after the second side instead of the first.
    """
    drawn = []
    for place, row in enumerate(rows):
        # A wide space before it: bold numbers are wider than the chart assumes.
        note = f"\u2003{row.gained} won, {row.lost} lost, p {p_value(row.p)}, {row.cost_ratio:.2f} × GMAC"
        label = row.second if second else row.first
        drawn.append(Interval(label, row.value, row.low, row.high, note, bool(minor and minor[place])))
    return forest(drawn, x_label, scale=100)


def p_value(value: float) -> str:
    """Return a p-value with as many digits as it needs."""
    return f"{value:.3f}" if value >= 0.001 else f"{value:.0e}".replace("e-0", "e-")


# --- inherited and stand-alone ------------------------------------------------------------------


def rank_chart(ranks: RankCorrelation, *, width: int = 640, height: int = 400) -> str:
    """Draw stand-alone against inherited accuracy; hollow: does not count for τ."""
    if not ranks.points:
        return ""
    xs, ys = [point.inherited for point in ranks.points], [point.alone for point in ranks.points]
    left, right = _range(xs)
    # Labels stand at the right of their marks.
    frame = Frame(width, height, left, right + 0.4 * (right - left), *_range(ys), left=56, top=30, bottom=44)
    parts = _percent_x(frame)
    parts += frame_y(frame)
    parts.append(f'<text class="axis" x="{frame.left}" y="14">top-1 of the net trained by itself</text>')
    parts.append(
        f'<text class="axis" x="{(frame.left + width) / 2:.0f}" y="{height - 6}" text-anchor="middle">'
        "top-1 with inherited weights</text>"
    )
    taken: list[tuple[float, float, float]] = []
    for point in sorted(ranks.points, key=lambda point: -point.alone):
        x, y = frame.px(point.inherited), frame.py(point.alone)
        title = f"{point.name}: inherited {percent(point.inherited)}, by itself {percent(point.alone)}"
        kind = "point" if point.counts else "point hollow"
        colour = "var(--five)" if point.control else "var(--four)"
        parts.append(
            f'<g class="{kind}" style="color:{colour}"><title>{escape(title)}</title>'
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5"/></g>'
        )
        if len(ranks.points) <= MOST_LABELS or not point.control:
            parts.append(_beside(frame, x, y, point.name, taken))
    return svg(width, height, parts, "stand-alone against inherited accuracy")


def _range(values: Sequence[float]) -> tuple[float, float]:
    pad = max(0.12 * (max(values) - min(values)), 0.01)
    return max(0.0, min(values) - pad), min(1.0, max(values) + pad)


def frame_y(frame: Frame) -> list[str]:
    """Return horizontal grid lines with per cent."""
    parts = []
    for tick in ticks(frame.y0, frame.y1, frame.y_ticks):
        y = frame.py(tick)
        parts.append(
            f'<line class="grid" x1="{frame.left}" x2="{frame.width - frame.right}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text class="tick" x="{frame.left - 6}" y="{y + 4:.1f}" text-anchor="end">{100 * tick:.4g} %</text>'
        )
    return parts


def _percent_x(frame: Frame) -> list[str]:
    parts, base = [], frame.height - frame.bottom
    for tick in ticks(frame.x0, frame.x1):
        x = frame.px(tick)
        parts.append(
            f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{frame.top}" y2="{base}"/>'
            f'<text class="tick" x="{x:.1f}" y="{base + 16}" text-anchor="middle">{100 * tick:.4g} %</text>'
        )
    return parts


def _beside(frame: Frame, x: float, y: float, text: str, taken: list[tuple[float, float, float]]) -> str:
    """Place a label at the right of a mark, on the nearest line in the plot where it covers no other label."""
    wide = CHARACTER * len(text)
    start = min(x + 9, frame.width - 2 - wide)
    shifts = sorted(range(-frame.height, frame.height, 3), key=lambda shift: (abs(shift), -shift))
    lines = [y + 4 + shift for shift in shifts if frame.top + 8 < y + 4 + shift < frame.height - frame.bottom - 2]
    near = [place[2] for place in taken if start < place[1] and place[0] < start + wide]
    line = next((line for line in lines if all(abs(line - other) >= 14 for other in near)), y + 4)
    taken.append((start, start + wide, line))
    return f'<text class="label" x="{start:.1f}" y="{line:.1f}">{escape(text)}</text>'


# --- stream -------------------------------------------------------------------------------------


def stream_chart(stream: Stream, *, width: int = 860, height: int = 320) -> str:
    """Draw accuracy after each frame with its interval, and that of whole clips as a line across."""
    if not stream.after:
        return ""
    frames = len(stream.after)
    others = [stream.clip] if stream.clip else []
    ends = [value for share in (*stream.after, *others) for value in (share.low, share.high)]
    low, high = max(0.0, min(ends) - 0.02), min(1.0, max(ends) + 0.02)
    frame = Frame(width, height, 1, max(frames, 2), low, high, left=56, top=30, bottom=44)
    parts = frame_y(frame)
    for tick in sorted({1, *range(-(-frames // 8), frames + 1, -(-frames // 8)), frames}):
        x, base = frame.px(tick), height - frame.bottom
        if tick == frames or frame.px(frames) - x > 30:
            parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{frame.top}" y2="{base}"/>')
            parts.append(f'<text class="tick" x="{x:.1f}" y="{base + 16}" text-anchor="middle">{tick}</text>')
    parts.append(f'<text class="axis" x="{frame.left}" y="14">top-1</text>')
    middle = (frame.left + width) / 2
    parts.append(f'<text class="axis" x="{middle:.0f}" y="{height - 6}" text-anchor="middle">frames seen</text>')
    places = [frame.px(t) for t in range(1, frames + 1)]
    upper = [f"{x:.1f},{frame.py(share.high):.1f}" for x, share in zip(places, stream.after, strict=True)]
    lower = [f"{x:.1f},{frame.py(share.low):.1f}" for x, share in zip(places, stream.after, strict=True)]
    parts.append(f'<polygon class="band" points="{" ".join([*upper, *reversed(lower)])}"/>')
    if stream.clip:
        y = frame.py(stream.clip.value)
        parts.append(f'<line class="across" x1="{frame.left}" x2="{width - frame.right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(
            f'<text class="label" x="{frame.left + 8}" y="{y - 6:.1f}">whole clip {percent(stream.clip.value)}</text>'
        )
    line = [f"{x:.1f},{frame.py(share.value):.1f}" for x, share in zip(places, stream.after, strict=True)]
    parts.append(f'<polyline class="curve s1" points="{" ".join(line)}"/>')
    for number, (x, share) in enumerate(zip(places, stream.after, strict=True), start=1):
        y = frame.py(share.value)
        words = f"after {number} frames: {percent(share.value)} ({interval(share.low, share.high)})"
        parts.append(f'<circle class="dot s1" cx="{x:.1f}" cy="{y:.1f}" r="3"><title>{words}</title></circle>')
    return svg(width, height, parts, "accuracy after each frame")
