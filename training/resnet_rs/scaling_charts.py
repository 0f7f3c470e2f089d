"""The charts of the scaling page."""

from collections.abc import Sequence

from training.core.charts_compare import SHAPES, Interval, Mark, forest, palette, scatter, swatch
from training.resnet_rs.records import AXES, Configuration, Record
from training.resnet_rs.resampling import Estimate
from training.resnet_rs.scaling import Scaling

MOST_RULES = 8
MOST_LABELS = 12


def cloud(result: Scaling, records: Sequence[Record]) -> str:
    """Draw accuracy against cost: configurations with the front, and stopped trials hollow."""
    colour, shape = _colours(records), _shapes(result)
    front = {configuration.name for configuration in result.front}
    # Labels of a long front would cover it: the ends and as many between as fit.
    spaced = list(result.front)[:: -(-len(result.front) // MOST_LABELS)] if result.front else []
    labelled = {configuration.name for configuration in [*spaced, *result.front[-1:]]}
    marks = [
        Mark(
            x=c.gmac,
            y=c.top1,
            title=hint(c) + (", on the front" if c.name in front else ""),
            label=c.name if c.name in labelled else "",
            colour=colour[c.frames],
            shape=shape[_level_of(c)],
            low=c.low,
            high=c.high,
        )
        for c in result.configurations
    ]
    for record in records:
        if record.status == "stopped" and record.top1 is not None:
            text = f"{record.name}: {percent(record.top1)} after {record.steps} steps, stopped; {gmac(record.gmac)}"
            marks.append(Mark(record.gmac, record.top1, text, "", colour[record.frames], shape[record.level], True))
    return scatter(
        marks,
        "GMAC per view",
        "top-1",
        line=[(c.gmac, c.top1) for c in result.front],
        rules=_rules(result),
    )


def _rules(result: Scaling) -> list[tuple[float, str]]:
    """Return lines of equal cost: the levels of a search, or else costs at which configurations are compared."""
    if result.levels:
        return [(level.gmac, level.name) for level in result.levels]
    costs: list[float] = []
    for cost in sorted((c.gmac_first * c.gmac_second) ** 0.5 for c in result.comparisons):
        if not costs or cost > (1 + 2 * result.tolerance) * costs[-1]:
            costs.append(cost)
    if len(costs) > MOST_RULES:
        costs = [costs[round(i * (len(costs) - 1) / (MOST_RULES - 1))] for i in range(MOST_RULES)]
    return [(cost, gmac(cost)) for cost in costs]


def _colours(records: Sequence[Record]) -> dict[int, str]:
    frames = sorted({record.frames for record in records})
    return dict(zip(frames, palette(len(frames)), strict=True))


def _shapes(result: Scaling) -> dict[str, str]:
    """Return the shape of grid points ("") and of each level."""
    names = ["", *(level.name for level in result.levels)]
    return {name: SHAPES[min(i, len(SHAPES) - 1)] for i, name in enumerate(names)}


def _level_of(configuration: Configuration) -> str:
    return configuration.levels[0] if configuration.searched and configuration.levels else ""


def legend(result: Scaling, records: Sequence[Record]) -> list[tuple[str, str]]:
    """Return marks and words of the legend of `cloud`: colour by frames, shape by grid or level."""
    entries = [(swatch(colour), f"{frames} frames") for frames, colour in _colours(records).items()]
    shapes = _shapes(result)
    if result.levels:
        if any(not c.searched for c in result.configurations):
            entries.append((swatch(shape=shapes[""]), "grid"))
        entries += [(swatch(shape=shapes[level.name]), f"level {level.name}") for level in result.levels]
    if result.stopped:
        entries.append((swatch(shape=SHAPES[1] if result.levels else SHAPES[0], hollow=True), "hollow: stopped early"))
    return entries


def hint(c: Configuration) -> str:
    """Return what is shown when the mouse rests on a configuration."""
    seeds = f", {c.seeds} seeds {percent(c.seed_low)} to {percent(c.seed_high)}" if c.seeds > 1 else ""
    return f"{c.name}: {percent(c.top1)} (95 % {percent(c.low)} to {percent(c.high)}){seeds}, {gmac(c.gmac)}"


def gains(result: Scaling) -> str:
    """Draw the gains per doubling of cost, of each axis and of its segments."""
    rows = []
    for axis in AXES:
        gain = result.gains[axis]
        if gain.gain is None:
            rows.append(Interval(axis_title(axis), None, note=f"not estimable: {gain.reason}"))
            continue
        rows.append(_row(axis_title(axis), gain.gain, gain.pairs))
        if len(gain.segments) > 1:
            rows += [_row(f"{s.start:g} → {s.end:g}", s.gain, s.pairs, minor=True) for s in gain.segments]
    return forest(rows, "points of top-1 per doubling of cost", scale=100)


def _row(label: str, gain: Estimate, pairs: int, minor: bool = False) -> Interval:
    return Interval(label, gain.value, gain.low, gain.high, f"{pairs} pair{'s' * (pairs != 1)}", minor)


def trades(result: Scaling) -> str:
    """Draw what one axis gains over another at equal cost."""
    rows = [
        _row(f"more {axis_name(trade.more)}, less {axis_name(trade.less)}", trade.difference, trade.pairs)
        for trade in result.trades
    ]
    return forest(rows, "points of top-1 at equal cost, mean over the pairs", scale=100)


def axis_name(axis: str) -> str:
    """Return the name of an axis in words; other names as they are."""
    return "input size" if axis == "size" else axis


def axis_title(axis: str) -> str:
    """Return the name of an axis as a heading."""
    return axis_name(axis).capitalize()


def percent(value: float) -> str:
    """Return a share in per cent."""
    return f"{100 * value:.1f} %"


def gmac(value: float) -> str:
    """Return a cost in GMAC."""
    return f"{value:.3g} G" if value < 1000 else f"{value:.0f} G"
