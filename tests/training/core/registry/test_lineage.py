import json

import pytest
from rich.console import Console

from training.core.lineage import as_tree, lineage
from training.core.registration import Registry
from training.core.tracking import client, find_runs

# Whichever test comes first waits for the session's project to be trained, evaluated and registered.
pytestmark = pytest.mark.timeout(300)


def test_chain_from_version_to_manifest(registered):
    node = lineage(registered.settings, "adafocus-demo/1")
    assert node.kind == "version"
    titles = [item.title for item in node.walk()]
    for expected in ("adafocus_finetune@demo", "adafocus_eval@demo", "data/shards/demo", "data/manifests/demo.csv"):
        assert expected in titles
    training = next(item for item in node.walk() if item.title == "adafocus_finetune@demo")
    assert training.facts["git commit"] == "a" * 40
    assert training.facts["flow run id"] == "flow-1"
    shards = next(item for item in node.walk() if item.title == "data/shards/demo")
    assert shards.facts["on disk now"] == "these shards"
    manifest = next(item for item in node.walk() if item.title == "data/manifests/demo.csv")
    assert manifest.facts["listed videos"] == "138"
    assert not [item for item in node.walk() if item.kind == "missing"]
    json.dumps(node.as_dict())


def test_a_model_folder_has_the_same_training_run(registered):
    folder = registered.settings.runs / "demo" / "adafocus_finetune" / "model"
    node = lineage(registered.settings, str(folder))
    assert node.kind == "model"
    assert node.children[0].title == "adafocus_finetune@demo"


def test_missing_links_are_said(registered):
    """Without the training run and with other shards nothing is invented."""
    settings = registered.settings
    version = Registry.open(settings).version("adafocus-demo", "1")
    (run,) = find_runs(settings, {"model_digest": version.tags["model_digest"]})
    index = settings.shards / "demo" / "index.json"
    kept = index.read_text()
    mlflow = client(settings.tracking_uri)
    try:
        mlflow.delete_run(run.run_id)
        index.write_text(kept.replace(registered.index.shards[0].sha256, "0" * 64))
        node = lineage(settings, "adafocus-demo/1")
    finally:
        mlflow.restore_run(run.run_id)
        index.write_text(kept)
    missing = [item for item in node.walk() if item.kind == "missing"]
    assert [item.title for item in missing] == ["run of adafocus_finetune@demo"]
    assert "no finished run of this store" in missing[0].facts["missing"]
    shards = next(item for item in node.walk() if item.title == "data/shards/demo")
    assert shards.facts["on disk now"].startswith("another version")


def test_upstream_runs_are_followed_by_digest(registered):
    settings = registered.settings
    version = Registry.open(settings).version("adafocus-demo", "1")
    (finetune,) = find_runs(settings, {"model_digest": version.tags["model_digest"]})
    (local,) = find_runs(settings, {"stage": "adafocus_pretrain", "instance_net": "local"}) or [None]
    assert local is None
    local = next(run for run in find_runs(settings, {"stage": "adafocus_pretrain"}) if run.name.endswith("-local"))
    mlflow = client(settings.tracking_uri)
    kept = finetune.tags["upstream_model_digests"]
    links = {"adafocus_pretrain-local": local.tags["model_digest"], "adafocus_gone": "e" * 64}
    try:
        mlflow.set_tag(finetune.run_id, "upstream_model_digests", json.dumps(links))
        node = lineage(settings, "adafocus-demo/1")
    finally:
        mlflow.set_tag(finetune.run_id, "upstream_model_digests", kept)
    training = next(item for item in node.walk() if item.title == "adafocus_finetune@demo")
    assert [(child.kind, child.title) for child in training.children] == [
        ("run", "adafocus_pretrain@demo-local"),
        ("missing", "run of adafocus_gone"),
    ]


def test_tree_prints_names_as_they_are(registered):
    console = Console(record=True, width=160, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(as_tree(lineage(registered.settings, "adafocus-demo/1")))
    text = console.export_text()
    assert "adafocus-demo/1" in text
    assert "data/manifests/demo.csv" in text
