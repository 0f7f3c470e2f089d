"""What the scaling stage recommends can be pasted: it is the configuration that the sweep would have trained."""

from typing import Any

from training.core.config import validate
from training.resnet_rs.config import GridConfig, ScalingConfig, TrainConfig
from training.resnet_rs.scaling_stage import ScalingReport


def test_recommended_settings_are_those_of_a_point_of_the_grid(values: dict[str, Any]) -> None:
    given = {"data": values["data"], "model": values["model"], "bootstrap": 100, "seed": 0}
    report = ScalingReport(validate(ScalingConfig, given, "scaling"), ("a", "b"), {})
    sections = report.sections((38, 8, 64, 0.25))
    pasted = dict(sections["resnet_rs_data"])
    data = {**values["data"], **pasted, "transform": {**values["data"]["transform"], **pasted["transform"]}}
    model = {**values["model"], **sections["resnet_rs_model"]}
    trained = validate(TrainConfig, {**values, "data": data, "model": model}, "pasted")
    point = {"depth": 38, "frames": 8, "size": 64, "width": 0.25, "seed": values["fit"]["seed"]}
    grid = validate(GridConfig, {**values, **point}, "point")
    assert (trained.data, trained.model, trained.fit) == (grid.data, grid.model, grid.fit)
