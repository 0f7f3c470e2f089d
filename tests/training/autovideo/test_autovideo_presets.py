"""The published nets at the published cost, and what every primitive of the catalogue declares."""

import functools
import json
from collections.abc import Iterator

import pytest
import yaml
from typer.testing import CliRunner

from training.__main__ import app
from training.autovideo.catalogue import catalogue, configure
from training.autovideo.domains import Choice, choice, floats
from training.autovideo.presets import MODELS, NETS
from training.autovideo.primitive import Primitive, PrimitiveConfig, setting
from training.core.config import ConfigError
from training.core.cost import CostError, CostRow, cost_of

# --- cost ---------------------------------------------------------------------------------------

TABLE = [
    # §11.1 of the notes: net, settings, parameters in M, GMAC of a view; as printed there.
    ("tsn_r50", {}, "24.33", "12.3"),
    ("tsn_r50", {"frames": "1"}, "24.33", "4.09"),
    ("tsn_r50", {"frames": "8"}, "24.33", "32.7"),
    ("tsn_r50", {"frames": "25"}, "24.33", "102.2"),
    ("tsm_r50", {}, "24.33", "32.7"),
    ("tsm_r50", {"frames": "16"}, "24.33", "65.4"),
    ("i3d", {"frames": "16"}, "12.70", "27.79"),
    ("i3d", {"frames": "32"}, "12.70", "55.58"),
    ("i3d", {}, "12.70", "111.15"),
    # MMAction2 prints 43.5 for pictures of 256², norms and pools counted; convolutions alone are 43.27.
    ("i3d_r50", {}, "28.04", "33.13"),
    ("i3d_r50", {"size": "256"}, "28.04", "43.27"),
    ("eco_lite", {"frames": "4"}, "37.50", "11.62"),
    ("eco_lite", {"frames": "8"}, "37.50", "23.24"),
    ("eco_lite", {}, "37.50", "46.49"),
    ("eco_lite", {"frames": "32"}, "37.50", "92.97"),
    ("eco_full", {"frames": "4"}, "47.50", "16.10"),
    ("eco_full", {"frames": "8"}, "47.50", "32.21"),
    ("eco_full", {}, "47.50", "64.41"),
    ("eco_full", {"frames": "32"}, "47.50", "128.83"),
    ("c3d", {}, "79.63", "38.55"),
    ("c3d", {"classes": "101"}, "78.41", "38.55"),
    ("c3d", {"classes": "51"}, "78.20", "38.55"),
    ("r2plus1d_18.tv", {}, "31.51", "40.52"),
    ("r2plus1d_34.tv", {}, "61.83", "150.4"),
    # One middle width per convolution: with torchvision's stem 63.70, with that of the 3D-ResNets 63.75.
    ("r2plus1d_34.paper", {}, "63.70", "152.36"),
    ("r2plus1d_18.hara", {}, "33.42", "8.48"),
    ("r2plus1d_18.hara", {"depth": "34"}, "63.75", None),
    ("r3d_18.tv", {}, "33.37", "40.70"),
    ("r3d_34.tv", {}, "63.68", "150.8"),
    ("r3d_18.hara", {}, "33.41", "8.31"),
    ("r3d_34.hara", {}, "63.72", "12.70"),
    ("r3d_50.hara", {}, "47.02", "10.07"),
    ("r3d_101.hara", {}, "86.06", "13.89"),
    pytest.param("r3d_152.hara", {}, "118.22", "18.61", marks=pytest.mark.slow),
    pytest.param("r3d_200.hara", {}, "127.42", "25.80", marks=pytest.mark.slow),
]


@functools.cache
def cost(name: str, *overrides: tuple[str, str]) -> CostRow:
    """Return a row; counting a deep net's operations takes a second."""
    return cost_of(name, dict(overrides))


def agrees(value: float, printed: str) -> bool:
    """Whether a value is a printed one to 0.1 %, beside what its rounding hides."""
    rounding = 0.5 * 10.0 ** -len(printed.partition(".")[2])
    return abs(value - float(printed)) <= 1e-3 * float(printed) + rounding


@pytest.mark.parametrize(("name", "overrides", "params", "gmac"), TABLE)
def test_published_figures(name, overrides, params, gmac):
    row = cost(name, *overrides.items())
    assert agrees(row.params / 1e6, params)
    assert gmac is None or agrees(row.gmac, gmac)
    assert row.gflop == 2 * row.gmac
    assert row.per == "view"


def test_every_preset_is_in_the_table():
    named = {(row.values if hasattr(row, "values") else row)[0] for row in TABLE}
    assert named == set(NETS) == set(MODELS)


def test_a_figure_of_another_net_does_not_agree():
    lite, tv = cost("eco_lite"), cost("r2plus1d_18.tv")
    assert not agrees(lite.params / 1e6, "47.50")
    assert not agrees(lite.gmac, "46.60")
    assert not agrees(tv.params / 1e6, "33.42"), "one middle width per convolution"
    assert not agrees(tv.gmac, "8.48"), "the net of the same name with a pool"


def test_command_prints_both_words():
    result = CliRunner().invoke(app, ["cost", "c3d"], catch_exceptions=False)
    assert "38.55 GMAC (77.1 GFLOP) per view, 79,634,576 parameters, input 16x3x112x112" in result.stdout
    result = CliRunner().invoke(app, ["cost", "c3d", "--set", "classes=51", "--json"], catch_exceptions=False)
    row = json.loads(result.stdout)
    assert row["gflop"] == 2 * row["gmac"]
    assert row["params"] == 78_204_723


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("tsn_r500", {}, "did you mean 'tsn_r50'"),
        ("tsn_r50", {"frame": "3"}, "did you mean 'frames'"),
        ("c3d", {"adaptve": "true"}, "did you mean 'adaptive'"),
        ("c3d", {"adaptive": "maybe"}, "must be bool"),
        ("c3d", {"frames": "8"}, "exactly 16 frames"),
        ("i3d", {"frames": "8"}, "at least 16 frames"),
        ("eco_lite", {"frames": "6"}, "multiple of 4"),
        ("r3d_18.tv", {"depth": "50"}, "form hara has 10 to 200"),
        ("tsn_r50", {"backbone": "resnet51"}, "resnet50"),
        # It used to be taken without a word, and to change nothing.
        ("tsn_r50", {"lr": "0.1"}, "no setting 'lr'"),
        ("tsn_r50", {"classes": "0"}, "classes .* at least 1"),
    ],
)
def test_settings_that_there_are_not(name, overrides, message):
    with pytest.raises((CostError, ConfigError), match=message):
        cost_of(name, overrides)


def test_settings_of_the_net_count():
    assert cost("c3d", ("width", "0.5")).gmac < 0.3 * cost("c3d").gmac
    assert cost("tsm_r50", ("temporal_pool", "true")).gmac < 0.7 * cost("tsm_r50").gmac
    assert cost("tsm_r50", ("frames", "3")).gmac == cost("tsn_r50").gmac, "a shift costs nothing"


# --- declarations -------------------------------------------------------------------------------

REQUIRED = {
    "reader/folder": {"root": "media"},
    "reader/csv": {"train": "train.csv", "media": "media"},
    "reader/d3m": {"root": "data"},
    "reader/ucf101": {"root": "media", "lists": "lists", "labels": "ucf101.txt"},
    "reader/hmdb51": {"root": "media", "lists": "lists", "labels": "hmdb51.txt"},
    "reader/kinetics": {"root": "media", "train": "train.csv", "labels": "kinetics400.txt"},
    "transform/normalise": {"by": "imagenet"},
}
"""Settings without a default; a recogniser needs its steps besides."""


def smallest(name: str) -> dict[str, object]:
    """Return the settings that a primitive cannot do without."""
    return {"steps": 1} if name.startswith("recognition/") else dict(REQUIRED.get(name, {}))


def ends(domain) -> tuple[object, ...]:
    """Return the values of a search domain that its bounds could exclude."""
    return domain.values if isinstance(domain, Choice) else (domain.low, domain.high)


def as_json(value: object) -> object:
    return json.loads(json.dumps(value))


def outside(item: type[Primitive]) -> Iterator[str]:
    """Yield what a primitive's search domains try that its config refuses or changes."""
    for field, domain in item.domains().items():
        assert set(domain.when) <= set(item.Config.model_fields)
        when = {key: value[0] if isinstance(value, tuple) else value for key, value in domain.when.items()}
        for value in ends(domain):
            try:
                config = item.Config.model_validate({**smallest(item.id), **when, field: as_json(value)})
            except ValueError as error:
                yield f"{item.id}.{field} = {value}: {error}"
            else:
                if as_json(config.model_dump(mode="json")[field]) != as_json(value):
                    yield f"{item.id}.{field} = {value} becomes {getattr(config, field)}"


def test_every_primitive_is_made_from_its_defaults():
    for name, item in catalogue().items():
        made = item(configure(name, smallest(name), "here"))
        # With every default written out, read back from JSON, it is the same.
        full = as_json(made.config.model_dump(mode="json"))
        assert configure(name, full, "again") == made.config, name


def test_every_primitive_is_described():
    for name, item in catalogue().items():
        description = as_json(item.describe())
        assert description["id"] == name
        assert description["summary"], name
        assert all(field["help"].strip() for field in description["config"].values()), name
        if item.example:
            step = yaml.safe_load(item.example)
            assert step["use"] == name
            configure(name, step.get("with", {}), "example")


def test_what_is_searched_is_legal():
    assert [line for item in catalogue().values() for line in outside(item)] == []


def test_a_domain_outside_the_bounds_is_noticed():
    class Wrong(Primitive):
        id = "augment/wrong"

        class Config(PrimitiveConfig):
            p: float = setting(0.5, help="probability", ge=0, le=1, search=floats(0, 2))
            count: int = setting(1, help="a number", search=choice(1, "one"))

    assert [line.partition(":")[0] for line in outside(Wrong)] == ["augment/wrong.p = 2.0", "augment/wrong.count = one"]


def test_no_help_no_setting():
    with pytest.raises(ValueError, match="needs a line of help"):
        setting(1, help=" ")


def test_what_has_no_default_is_known():
    """A further setting without a default would break documents that are already written."""
    required = {
        name: {field for field, info in item.Config.model_fields.items() if info.is_required()}
        for name, item in catalogue().items()
    }
    assert {name: fields for name, fields in required.items() if fields} == {
        name: set(values) for name, values in REQUIRED.items()
    }
