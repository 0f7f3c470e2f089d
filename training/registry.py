"""The families, by name. Explicit and lazy: listing them imports nothing heavy."""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from training.core.stage import Stage

FAMILIES: dict[str, str] = {
    "adafocus": "training.adafocus",
    "resnet_rs": "training.resnet_rs",
    "movinet": "training.movinet",
    "adamml": "training.adamml",
    "lsts": "training.lsts",
    "autovideo": "training.autovideo",
}
"""Family → package. A family's package exports `STAGES` (tuple of Stage), `MODELS` (name → function
`(overrides: dict[str, str]) -> CostRow`, built on the meta device) and may export `app`, a typer app."""


def load_family(name: str) -> ModuleType:
    """Import a family's package.

    Raises:
        KeyError: unknown family; the message lists the known ones.
    """
    if name not in FAMILIES:
        raise KeyError(f"unknown family {name!r}; known: {', '.join(FAMILIES)}")
    return importlib.import_module(FAMILIES[name])


def all_stages() -> dict[str, "Stage"]:
    """Return every stage of every family by name."""
    stages: dict[str, Stage] = {}
    for family in FAMILIES:
        for stage in load_family(family).STAGES:
            if stage.name in stages:
                raise ValueError(f"stage name {stage.name!r} is used twice (second time in {family})")
            stages[stage.name] = stage
    return stages


def family_of(stage_name: str) -> str:
    """Return the family that defines a stage."""
    for family in FAMILIES:
        if any(stage.name == stage_name for stage in load_family(family).STAGES):
            return family
    raise KeyError(f"unknown stage {stage_name!r}")
