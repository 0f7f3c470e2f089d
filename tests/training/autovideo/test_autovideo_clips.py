"""Clips as recipes: what decoders, transforms and augmenters of a document say to the loader."""

import pytest

from training.autovideo.document import Document
from training.autovideo.plan import clips_of, learners, stage_values
from training.core.config import ConfigError, DataConfig, FitConfig, validate


def pipeline(*middle, net=None, decoder="decoder/segments", **clip):
    steps = [
        {"id": "data", "use": "reader/dataset"},
        {"id": "clip", "use": decoder, "in": "data", "with": clip},
    ]
    for number, step in enumerate(middle):
        steps.append({"id": f"step{number}", "in": steps[-1]["id"], **step})
    steps.append({"id": "net", "use": "recognition/tsn", "in": steps[-1]["id"], "with": {"steps": 5, **(net or {})}})
    return {"schema": "pipeline/v1", "name": "test", "seed": 7, "steps": steps, "outputs": ["net.model"]}


def values(*middle, **settings):
    return stage_values(Document.from_dict(pipeline(*middle, **settings)))


def test_decoder_alone_gives_a_whole_data_block():
    data = validate(DataConfig, values(frames=4, size=64)["data"], "test")
    assert (data.num_frames, data.sampling, data.transform.size, data.transform.eval_short_side) == (
        4,
        "segments",
        64,
        74,
    )
    assert data.transform.train_crop == "center"
    assert not data.transform.flip


@pytest.mark.parametrize(
    ("step", "field", "expected"),
    [
        ({"use": "transform/flip"}, "flip", True),
        ({"use": "transform/multiscale_crop"}, "train_crop", "multiscale"),
        ({"use": "transform/random_resized_crop", "with": {"area": [0.2, 0.8]}}, "area", (0.2, 0.8)),
        ({"use": "transform/random_crop", "with": {"short_side": [70, 90]}}, "train_short_side", (70, 90)),
        ({"use": "transform/normalise", "with": {"by": "kinetics"}}, "normalise", "kinetics"),
        ({"use": "transform/views", "with": {"crops": 3}}, "eval_crops", 3),
    ],
)
def test_each_transform_works_alone(step, field, expected):
    """Defect D6 of the public code: a list of transforms did nothing unless there was one of augmenters, too."""
    data = validate(DataConfig, values(step, size=64)["data"], "test")
    assert getattr(data.transform, field) == expected
    plain = validate(DataConfig, values(size=64)["data"], "test")
    assert getattr(plain.transform, field) != expected


def test_augmenters_alone_and_transforms_alone():
    only = values({"use": "augment/brightness"})
    assert [use["use"] for use in only["augment"]] == ["augment/brightness"]
    assert values({"use": "transform/flip"})["augment"] == []


def test_a_later_crop_replaces_an_earlier_one():
    both = values({"use": "transform/random_resized_crop"}, {"use": "transform/center_crop"}, size=64)["data"]
    data = validate(DataConfig, both, "test")
    assert data.transform.train_crop == "center"
    assert data.transform.area is None


def test_every_net_brings_the_statistics_of_its_weights():
    assert values()["data"]["transform"]["normalise"] == "imagenet"
    steps = pipeline(decoder="decoder/dense", frames=16)
    steps["steps"][-1]["use"] = "recognition/i3d"
    assert stage_values(Document.from_dict(steps))["data"]["transform"]["normalise"] == "symmetric"


def test_order_of_augmenters_is_that_of_the_document():
    first = values({"use": "augment/brightness"}, {"use": "augment/contrast"})["augment"]
    second = values({"use": "augment/contrast"}, {"use": "augment/brightness"})["augment"]
    assert [use["use"] for use in first] == [use["use"] for use in reversed(second)]


def test_recipe_becomes_the_fit_block():
    net = {"optimiser": "adamw", "lr": 0.1, "policy": "tsn", "warmup_steps": 2, "ema_decay": 0.9, "accumulate": 2}
    made = values(net=net)
    fit = validate(FitConfig, made["fit"], "test")
    assert (fit.steps, fit.seed, fit.accumulate, fit.ema_decay) == (5, 7, 2, 0.9)
    assert fit.optim.lr["normal_bias"] == pytest.approx(0.2)
    assert fit.optim.lr["normal_weight"] == pytest.approx(0.1)


def test_rates_are_those_of_the_network():
    from training.autovideo.plan import TSN_RATES
    from training.backbones.segment_nets import TSN_RATES as OF_THE_NET

    assert TSN_RATES == OF_THE_NET


def test_epochs_are_counted_in_videos():
    document = Document.from_dict(pipeline(net={"steps": None, "epochs": 2.5, "batch_size": 16}))
    assert stage_values(document, num_train=40)["fit"]["steps"] == 7
    with pytest.raises(ConfigError, match="write `steps`"):
        stage_values(document)


@pytest.mark.parametrize(
    ("net", "message"),
    [
        ({"steps": None}, "one of steps and epochs"),
        ({"epochs": 1.0}, "one of steps and epochs"),
        ({"layout": "torchvision"}, "give weights"),
        ({"optimiser": "adamw", "nesterov": True}, "nesterov"),
        ({"dropuot": 0.5}, "did you mean 'dropout'"),
    ],
)
def test_bad_recipes_are_refused(net, message):
    with pytest.raises(ConfigError, match=message):
        Document.from_dict(pipeline(net=net))


def test_two_learners_need_a_name():
    values = pipeline()
    values["steps"].append({"id": "other", "use": "recognition/tsm", "in": "clip", "with": {"steps": 3}})
    values["outputs"].append("other.model")
    document = Document.from_dict(values)
    assert learners(document) == ["net", "other"]
    assert stage_values(document, "other")["fit"]["steps"] == 3
    with pytest.raises(ConfigError, match="2 recognisers"):
        stage_values(document)


def test_clips_without_a_decoder_are_refused():
    document = Document.from_dict(pipeline())
    with pytest.raises(ConfigError, match="makes no clips"):
        clips_of(document.checked(), "data")
