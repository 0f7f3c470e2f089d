"""Lists of params.yaml: data sets of a family, axes of a planned grid, as DVC and as the stages see them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from infra.settings import Settings
from tasks.dvc import graph, locked_outputs
from training.core.config import ConfigError
from training.core.run import resolve
from training.core.stage import StageRef, paths_of, read_axis
from training.registry import all_stages, family_of

ROOT = Path(__file__).parents[3]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """This repository's DAG with lists of its own."""
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    write_lists(tmp_path, ["a"], ["a", "b"], depth=[26, 50], frames=[8], size=[64], width=[0.25, 1.0], seed=[0])
    for command in (["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q"]):
        subprocess.run(command, cwd=tmp_path, check=True, env={**os.environ, "DVC_NO_ANALYTICS": "1"})
    return tmp_path


def write_lists(root: Path, adafocus: list[str], resnet_rs: list[str], **axes: list[float]) -> None:
    # What other systems run on, and their axes, have to be there too.
    lists = yaml.safe_load((ROOT / "params.yaml").read_text()) | {"movinet": []}
    lists |= {"datasets": ["a", "b"], "adafocus": adafocus, "resnet_rs": resnet_rs, "resnet_rs_grid": axes}
    (root / "params.yaml").write_text(yaml.safe_dump(lists))


def instances(root: Path) -> set[str]:
    """Instances of all families on the data sets of their lists."""
    lists = yaml.safe_load((root / "params.yaml").read_text())
    return {
        str(ref)
        for stage in all_stages().values()
        for dataset in lists[family_of(stage.name)]
        for ref in stage.instances(dataset, root)
    }


def test_dvc_and_the_stages_name_the_same_instances(project: Path) -> None:
    found = graph(project)
    training = {name for name in found if name.split("@")[0] in all_stages()}
    assert training == instances(project)
    points = {name for name in training if name.startswith("resnet_rs_grid@b")}
    assert points == {f"resnet_rs_grid@b-{depth}-8-64-{width}-0" for depth in (26, 50) for width in (0.25, 1.0)}
    # A family runs only where it is listed.
    assert not any(name.startswith("adafocus") and "@b" in name for name in training)


def test_the_report_comes_after_every_point_and_the_search(project: Path) -> None:
    before = set(graph(project).predecessors("resnet_rs_scaling@a"))
    points = {f"resnet_rs_grid@a-{depth}-8-64-{width}-0" for depth in (26, 50) for width in (0.25, 1.0)}
    assert before == {*points, "resnet_rs_search@a", "shards@a"}


def test_an_empty_list_has_no_stages(project: Path) -> None:
    write_lists(project, [], [], depth=[26], frames=[8], size=[64], width=[1], seed=[0])
    assert {name.split("@")[0] for name in graph(project)} == {"synthesize", "manifest", "shards"}
    assert locked_outputs(project) == {}


def test_a_report_reads_the_present_grid_only(project: Path) -> None:
    stages, settings = all_stages(), Settings(root=project)
    ref = StageRef.parse("resnet_rs_scaling@a")
    folders = paths_of(stages[ref.stage], ref, settings, stages).results
    assert [path.name for path in folders["resnet_rs_grid"]] == [
        "26-8-64-0.25-0", "26-8-64-1.0-0", "50-8-64-0.25-0", "50-8-64-1.0-0",
    ]  # fmt: skip
    assert {path.parent.name for path in folders["resnet_rs_grid"]} == {"resnet_rs_grid"}
    write_lists(project, [], ["a"], depth=[50], frames=[8], size=[64], width=[1.0], seed=[0])
    smaller = paths_of(stages[ref.stage], ref, settings, stages).results["resnet_rs_grid"]
    assert [path.name for path in smaller] == ["50-8-64-1.0-0"]


def test_a_smaller_grid_is_a_parameter_of_the_report() -> None:
    entries = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    assert {"params.yaml": ["resnet_rs_grid"]} in entries["resnet_rs_scaling"]["params"]
    assert "runs/${item.data}/resnet_rs_grid" in entries["resnet_rs_scaling"]["deps"]
    assert "run.json" in (ROOT / ".dvcignore").read_text().splitlines()


def test_points_outside_the_grid_and_missing_axes_are_named(project: Path) -> None:
    settings = Settings(root=project)
    with pytest.raises(ConfigError, match=r"50-9-64-1\.0-0 is not an instance of resnet_rs_grid"):
        resolve(StageRef.parse("resnet_rs_grid@a-50-9-64-1.0-0"), settings)
    (project / "params.yaml").write_text("resnet_rs_grid: {depth: 50}\n")
    for name in ("resnet_rs_grid.depth", "resnet_rs_grid.frames", "elsewhere.depth"):
        with pytest.raises(ConfigError, match=f"has no list '{name}'"):
            read_axis(project, name)
