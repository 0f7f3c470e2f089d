"""The wrappers around DVC, on real repositories of shell stages."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import networkx as nx
import pytest

from tasks import dvc

PIPELINE = """
stages:
  first:
    cmd: cp source a
    deps: [source]
    outs: [a]
  second:
    matrix:
      data: [demo, own]
      net: [x, y]
    cmd: cat a > b-${item.data}-${item.net}
    deps: [a]
    params: [size]
    outs:
    - b-${item.data}-${item.net}
  broken:
    cmd: echo words of the command >&2 && exit 4
    deps: [a]
    outs: [c]
  slow:
    cmd: touch started && while ! test -e go; do sleep 0.05; done && cp a d
    deps: [a]
    outs: [d]
"""


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("dvc")
    (root / "dvc.yaml").write_text(PIPELINE)
    (root / "params.yaml").write_text("size: 1\n")
    (root / "source").write_text("one\n")
    for command in (["git", "init", "-q"], dvc.command("init", "-q")):
        subprocess.run(command, cwd=root, check=True, env=dvc.environment())
    return root


@pytest.fixture
def root(template: Path, tmp_path: Path) -> Path:
    import shutil

    copy = tmp_path / "repository"
    shutil.copytree(template, copy)
    return copy


def test_graph_from_the_index_and_from_the_command_agree(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = dvc.graph(root)
    edges, nodes = dvc._graph_of_dot(dvc._ask(root, "dag", "--dot"))
    assert set(found.nodes) == set(nodes)
    assert set(found.edges) == set(edges)
    assert set(nx.ancestors(found, "second@demo-x")) == {"first"}
    # The names do not depend on the current folder, though DVC's own do.
    monkeypatch.chdir(root / ".git")
    assert set(dvc.graph(root).edges) == set(edges)


def test_an_invalid_file_is_an_error_with_dvcs_words(root: Path) -> None:
    (root / "dvc.yaml").write_text("stages: [")
    with pytest.raises(dvc.DvcError, match=r"dvc\.yaml.* is invalid"):
        dvc.graph(root)


def test_status_says_why(root: Path) -> None:
    assert dvc.status(root)["first"] == ["input source modified", "output a deleted"]
    dvc.repro(root, "first")
    dvc.repro(root, "second@demo-x")
    assert not {"first", "second@demo-x"} & set(dvc.status(root))
    (root / "params.yaml").write_text("size: 2\n")
    (root / "source").write_text("two\n")
    found = dvc.status(root)
    assert found["second@demo-x"] == ["params.yaml: size modified"]
    assert found["first"] == ["input source modified"]


def test_outputs_are_read_from_the_lock_file(root: Path) -> None:
    assert dvc.locked_outputs(root) == {}
    dvc.repro(root, "first")
    before = dvc.locked_outputs(root)
    assert [path for path, _ in before["first"]] == ["a"]
    (root / "source").write_text("two\n")
    dvc.repro(root, "first")
    assert dvc.locked_outputs(root)["first"] != before["first"]


def test_a_failing_stage_is_an_error_with_its_words_and_no_retry(root: Path) -> None:
    dvc.repro(root, "first")
    start = time.monotonic()
    with pytest.raises(dvc.DvcError, match="words of the command"):
        dvc.repro(root, "broken")
    assert time.monotonic() - start < 60  # thirty attempts would take longer


def test_dvcs_lock_is_waited_for(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another DVC holds the repository's lock: the wrapper tries again, and only for that error."""
    dvc.repro(root, "first")
    holder = "import sys; from dvc.repo import Repo\nr = Repo('.')\n"
    holder += "with r.lock:\n    print('held', flush=True); sys.stdin.read()"
    attempts: list[int] = []
    streamed = dvc.run_streamed

    with subprocess.Popen(
        [sys.executable, "-c", holder], cwd=root, env=dvc.environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"

        def counted(*arguments: object) -> dvc.Finished:
            finished = streamed(*arguments)  # type: ignore[arg-type]
            attempts.append(finished.returncode)
            if len(attempts) == 1:
                process.stdin.close()  # type: ignore[union-attr]
                process.wait()
            return finished

        monkeypatch.setattr(dvc, "run_streamed", counted)
        dvc.repro(root, "second@demo-x")
    assert len(attempts) == 2
    assert attempts[0] != 0
    assert attempts[1] == 0


def test_two_stages_at_once(root: Path) -> None:
    dvc.repro(root, "first")
    worker = threading.Thread(target=dvc.repro, args=(root, "slow"))
    worker.start()
    while not (root / "started").exists():
        time.sleep(0.05)
    dvc.repro(root, "second@demo-x")  # DVC frees its lock while a stage's command runs
    (root / "go").touch()
    worker.join()
    assert set(dvc.locked_outputs(root)) == {"first", "slow", "second@demo-x"}


def test_push_and_pull(root: Path, tmp_path: Path) -> None:
    dvc.repro(root, "first")
    with pytest.raises(dvc.DvcError, match="remote"):
        dvc.push(root)
    remote = tmp_path / "remote"
    subprocess.run(dvc.command("remote", "add", "-d", "here", str(remote)), cwd=root, check=True, env=dvc.environment())
    dvc.push(root, ["first"])
    (root / "a").unlink()
    import shutil

    shutil.rmtree(root / ".dvc/cache")
    dvc.pull(root, ["first"])
    assert (root / "a").read_text() == "one\n"


def test_push_and_pull_to_s3(root: Path, s3_url: str) -> None:
    """The bytes come back from a real S3 server (moto) on loopback and from nowhere else."""
    import shutil

    import boto3

    client = boto3.client("s3", endpoint_url=s3_url)
    client.create_bucket(Bucket="dvc-store")
    for command in (
        ["remote", "add", "-d", "cloud", "s3://dvc-store/fovea"],
        ["remote", "modify", "cloud", "endpointurl", s3_url],
    ):
        subprocess.run(dvc.command(*command), cwd=root, check=True, env=dvc.environment())
    dvc.repro(root, "first")
    dvc.push(root, ["first"])
    stored = [item["Key"] for item in client.list_objects_v2(Bucket="dvc-store")["Contents"]]
    assert any(key.startswith("fovea/files/md5/") for key in stored)
    (root / "a").unlink()
    shutil.rmtree(root / ".dvc/cache")
    dvc.pull(root, ["first"])
    assert (root / "a").read_text() == "one\n"
    for key in stored:  # the control: with an empty bucket nothing can come back
        client.delete_object(Bucket="dvc-store", Key=key)
    (root / "a").unlink()
    shutil.rmtree(root / ".dvc/cache")
    with pytest.raises(dvc.DvcError):
        dvc.pull(root, ["first"])


@pytest.mark.parametrize(
    ("stage", "dataset", "training"),
    [
        ("synthesize", None, False),
        ("manifest@demo", "demo", False),
        ("adafocus_pretrain@my_set-glance", "my_set", True),
        ("adafocus_eval@demo", "demo", True),
    ],
)
def test_names(stage: str, dataset: str | None, training: bool) -> None:
    assert dvc.dataset_of(stage) == dataset
    assert dvc.is_training(stage) is training


def test_children_find_this_interpreter() -> None:
    found = dvc.environment({"WORD": "x"})
    assert found["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)
    assert found["WORD"] == "x"
    assert found["DVC_NO_ANALYTICS"]
