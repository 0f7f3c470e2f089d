"""Points of the grid, views, and settings that cannot be."""

from typing import Any

import pytest

from training.core.config import ConfigError, apply_overrides, validate
from training.resnet_rs.config import GridConfig, NetConfig, TrainConfig, ViewsConfig

POINT = {"depth": "38", "frames": "8", "size": "64", "width": "0.25", "seed": "5"}
"""As DVC gives the items of a matrix: text."""


def test_a_point_changes_net_input_and_seed(values: dict[str, Any]) -> None:
    base = validate(TrainConfig, values, "base")
    point = validate(GridConfig, values | POINT, "point")
    assert (point.model.depth, point.model.width) == (38, 0.25)
    assert (point.data.num_frames, point.data.transform.size, point.fit.seed) == (8, 64, 5)
    # The base evaluates 32 px of a short side of 36: the ratio stays.
    assert point.data.transform.eval_short_side == 72
    # Nothing else differs.
    back = point.model.model_copy(update={"depth": base.model.depth, "width": base.model.width})
    assert back == base.model
    assert point.fit.model_copy(update={"seed": base.fit.seed}) == base.fit
    assert point.data.batch_size == base.data.batch_size


def test_a_saved_point_is_the_same_when_read_again(values: dict[str, Any]) -> None:
    point = validate(GridConfig, values | POINT, "point")
    assert validate(GridConfig, point.model_dump(mode="json"), "saved") == point


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("depth=51", "depth must be one of 26, 38, 50"),
        ("model.temporal=1133x", "temporal must be one of"),
        ("model.drop_pth=0.1", "did you mean 'drop_path'"),
        ("data.sampling=segments", "go with sampling `dense`"),
        ("frames=0", "frames: Input should be greater"),
        ("size=8", "size: Input should be greater"),
        ("width=-1", "width: Input should be greater"),
        ("seed=x", "seed"),
    ],
)
def test_points_that_cannot_be_are_refused_by_name(values: dict[str, Any], override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate(GridConfig, apply_overrides(values | POINT, [override]), "point")


def test_segments_are_refused_even_without_dense_settings(values: dict[str, Any]) -> None:
    changed = apply_overrides(values, ["data.sampling=segments", "data.stride=1", "data.overrun=repeat"])
    with pytest.raises(ConfigError, match="must be `dense`"):
        validate(TrainConfig, changed, "train")


def test_views_change_the_evaluation_only(values: dict[str, Any]) -> None:
    given = {"data": values["data"], "model": values["model"], "clips": 10, "crops": 3, "eval_size": 64}
    views = validate(ViewsConfig, given, "views")
    assert views.data.eval_views == 30
    assert views.data.eval_frames == 40
    assert views.data.transform.eval_side == views.data.transform.eval_short_side == 64
    assert views.data.transform.size == values["data"]["transform"]["size"]
    assert validate(ViewsConfig, views.model_dump(mode="json"), "again") == views


def test_every_field_of_the_layout_is_a_setting(values: dict[str, Any]) -> None:
    config = NetConfig(**values["model"])
    layout = config.layout()
    for name in type(layout).__dataclass_fields__:
        assert getattr(layout, name) == getattr(config, name)
