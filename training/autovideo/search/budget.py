"""Budgets of searches as people write them: `30trials`, `20m`, `4h`, `4gpuh`, several joined by commas."""

import math
import re

from pydantic import Field

from data_specs.strict import Strict
from training.core.config import ConfigError

_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PART = re.compile(r"(?P<number>\d+(\.\d+)?)\s*(?P<unit>trials?|gpuh|[smhd])")


class Budget(Strict):
    """What a search may use; it ends when the first is used up."""

    trials: int | None = Field(default=None, ge=1)
    """Trainings, failed ones included."""
    seconds: float | None = Field(default=None, gt=0)
    """For which the search runs, interruptions left out. Trainings that run when they are over run to their end."""


def parse_budget(text: str, gpus: int | None = None, where: str = "budget") -> Budget:
    """Return a budget.

    Args:
        text: parts `<number><unit>` joined by commas; units are `trials`, `s`, `m`, `h`, `d` and `gpuh`, GPU-hours:
            hours times the processes that hold a GPU while the search runs.
        gpus: how many processes hold a GPU; needed for `gpuh`.
        where: for messages.

    Raises:
        ConfigError: another form, the same thing twice, a number that is no budget, or GPU-hours without GPUs.
    """
    values: dict[str, float] = {}
    for part in text.split(","):
        found = _PART.fullmatch(part.strip())
        if found is None:
            raise ConfigError(f"{where}: {part.strip()!r} is no budget; write 30trials, 20m, 4h, 1d or 4gpuh")
        number, unit = float(found["number"]), found["unit"]
        if unit == "gpuh" and not gpus:
            raise ConfigError(f"{where}: {part.strip()!r} needs GPUs, and no process has one; write hours: {number:g}h")
        if unit.startswith("trial"):
            name, amount = "trials", number
        else:
            name, amount = (
                "seconds",
                number * 3600 / gpus if unit == "gpuh" and gpus else number * _SECONDS.get(unit, 0),
            )
        if name in values:
            raise ConfigError(f"{where}: {text!r} gives {'trials' if name == 'trials' else 'a time'} twice")
        if amount <= 0 or (name == "trials" and not math.floor(amount) == amount):
            raise ConfigError(f"{where}: {part.strip()!r} is no budget: a time above 0, or a whole number of trials")
        values[name] = amount
    trials = values.get("trials")
    return Budget(trials=int(trials) if trials is not None else None, seconds=values.get("seconds"))
