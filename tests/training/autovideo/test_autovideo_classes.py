"""Answers of a recogniser: an output per class of the label map (defect D7), averaged over the views of a video."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from training.autovideo.catalogue import configure, find
from training.core.checkpoint import load_model, save_model
from training.core.data import open_loader

CLASSES = ("blue", "green", "red")
FRAME_NET = {"width": 0.125, "dropout": 0.0, "backbone": "resnet18"}


def labels_of_tables(folder: Path) -> tuple[str, ...]:
    """Return the classes of numbered tables: with gaps, and one of them not in the training table."""
    (folder / "media").mkdir(parents=True)
    for split, labels in (("train", ("21", "3", "10", "3")), ("test", ("5", "10"))):
        with (folder / f"{split}.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(("path", "label"))
            rows.writerows((f"{n}.mp4", label) for n, label in enumerate(labels))
    settings = {"train": f"{folder}/train.csv", "test": f"{folder}/test.csv", "media": f"{folder}/media"}
    reader = find("reader/csv")(configure("reader/csv", settings, "reader"))
    return tuple(reader.labels())


def test_numbered_labels_with_gaps(tmp_path):
    assert labels_of_tables(tmp_path / "tables") == ("3", "5", "10", "21")


@pytest.mark.parametrize("names", [("3", "5", "10", "21"), ("jump", "nobody does this", "run: fast", "sit")])
def test_classes_travel_from_the_shards_to_the_saved_model(
    names, tmp_path, train_config, build_system, shard_writer, record_maker, mp4_encoder
):
    video = np.random.default_rng(0).integers(0, 255, (16, 32, 32, 3)).astype(np.uint8)
    content = mp4_encoder(video, tmp_path / "video.mp4")
    # Class 1 is missing from the training videos, and comes in the others.
    splits = {
        split: [(record_maker(f"{split}-{n}", split, n, 16, 32, 32), {"mp4": content}) for n in labels]
        for split, labels in (("train", (0, 2, 3)), ("val", (1, 3)))
    }
    shards = shard_writer(tmp_path / "shards", splits, classes=names)
    config = train_config("recognition/tsn", frames=3, size=16, **FRAME_NET, batch_size=3)
    loader = open_loader(shards, config.data, split="train", train=True, seed=0)
    raw = next(iter(loader))
    loader.close()
    assert loader.classes == names
    system = build_system(config, loader.classes)
    batch = system.prepare(raw, train=True)
    # What the defect made of it: as many outputs as there are labels in the training data.
    assert len(raw.label_B.unique()) == 3
    assert batch.target_BK.shape == (3, 4)
    assert batch.target_BK.argmax(1).tolist() == raw.label_B.tolist()
    assert system.train()(batch).loss.isfinite()

    folder = tmp_path / "model"
    save_model(
        folder,
        system.export_state(),
        stage="autovideo_train",
        dataset="tiny",
        config=config.model_dump(mode="json"),
        classes=system.classes,
        decoder=loader.decoder,
    )
    loaded = load_model(folder)
    assert loaded.classes == loaded.system.classes == names
    loader = open_loader(shards, loaded.data_config(), split="val", train=False, seed=0)
    batch = loaded.system.prepare(next(iter(loader)), train=False)
    loader.close()
    with torch.inference_mode():
        scores = loaded.system.predict(batch).scores_BK
        assert torch.equal(scores, system.eval().predict(batch).scores_BK)
    assert scores.shape[1] == 4
    assert batch.label_B[batch.valid_B].tolist() == [1, 3]


# --- views --------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["cross_entropy", "binary"])
def test_views_are_averaged_as_probabilities(loss, tiny_shards, train_config, build_system):
    views = {"use": "transform/views", "with": {"clips": 2, "crops": 3}}
    net = {**FRAME_NET, "loss": loss, "batch_size": 10}
    config = train_config("recognition/tsm", views, decoder="decoder/dense", frames=4, size=24, **net)
    system = build_system(config, CLASSES).eval()
    with torch.no_grad():  # the initial head answers everything alike
        system.net.fc.weight.mul_(60)
    loader = open_loader(tiny_shards, config.data, split="val", train=False, seed=0)
    batch = system.prepare(next(iter(loader)), train=False)
    loader.close()
    video = batch.video_BCTHW
    assert video.shape == (10, 3, 6 * 4, 24, 24), "60 views, which go through the net in two parts"
    with torch.inference_mode():
        scores = system.predict(batch).scores_BK
        logits = torch.stack([system.net(video[:, :, 4 * view : 4 * view + 4]) for view in range(6)])
        single = logits.sigmoid() if loss == "binary" else logits.softmax(-1)
        mixed = system.net(video[:, :, ::6])
    assert torch.allclose(scores, single.mean(0), atol=1e-5)
    assert float(single.std(0).max()) > 0.03, "views differ, so that one alone would be noticed"
    assert not torch.allclose(scores, single[0], atol=1e-2)
    assert not torch.allclose(scores, logits.mean(0).softmax(-1), atol=1e-3)
    assert not torch.allclose(scores, mixed.softmax(-1), atol=1e-2)
    assert system.cost()["main"].gmac == pytest.approx(
        6 * build_system(train_config("recognition/tsm", frames=4, size=24, **net), CLASSES).cost()["main"].gmac
    )
