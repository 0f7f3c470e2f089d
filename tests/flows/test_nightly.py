"""The nightly flow: every data set in turn, a broken one does not stop the others."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.nightly import NightlyError, listed_datasets, nightly

pytestmark = [pytest.mark.usefixtures("prefect_server"), pytest.mark.timeout(300)]


def test_params_without_a_list_are_refused(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("datasets: demo\n")
    with pytest.raises(NightlyError, match="datasets"):
        listed_datasets(tmp_path)


@pytest.mark.slow
def test_a_broken_data_set_does_not_stop_the_others(
    repository: Path, ran_stages: Callable[[], list[str]], tmp_path: Path
) -> None:
    (repository / "params.yaml").write_text("datasets:\n- broken\n- demo\n")
    (repository / "specs/broken").write_text("broken\n")
    (repository / "params/broken.yaml").write_text("toy_train: {left: 1, right: 1}\ntoy_eval: {x: 1}\n")
    store = tmp_path / "store"
    remote = [sys.executable, "-m", "dvc", "remote", "add", "-d", "store", str(store)]
    subprocess.run(remote, cwd=repository, check=True, capture_output=True)

    with pytest.raises(NightlyError, match=r"broken.*manifest@broken failed") as error:
        nightly(push_data=True, root=repository)
    assert "demo:" not in str(error.value)
    assert ran_stages() == ["manifest", "shards", "toy_train-left", "toy_train-right", "toy_eval"]
    assert (repository / "reports/index.html").exists()  # registry and report had their turn
    assert list(store.rglob("*"))  # what there is has been pushed

    (repository / "sources/broken").write_text("one\n")
    outcomes = nightly(root=repository)
    assert [(item.stage, item.result) for item in outcomes] == [("broken", "ran"), ("demo", "ran")]
    assert "toy_eval@broken" in outcomes[0].reasons
    assert outcomes[1].reasons == ("manifest@demo", "register, promote, report")  # nothing else was stale
