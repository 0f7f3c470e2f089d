"""Loading by path: what is read, what fits, what is refused, and that failure changes nothing."""

import subprocess

import pytest
import safetensors.torch
import torch
from torch import nn

from training.core.weights import WeightError, load_state, load_weights


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


def snapshot(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "w.pth", "w.th"])
def test_round_trip_by_path(tmp_path, name):
    trained, fresh = network(1), network(2)
    path = tmp_path / name
    if name.endswith("safetensors"):
        safetensors.torch.save_file(trained.state_dict(), path)
    else:
        torch.save(trained.state_dict(), path)
    report = load_weights(fresh, path)
    assert same(fresh.state_dict(), trained.state_dict())
    assert report.complete
    assert len(report.matched) == 9
    assert str(path) in str(report)


@pytest.mark.parametrize("container", ["state_dict", "model", "model_state_dict", "net"])
@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod.", "_orig_mod.module."])
def test_containers_and_prefixes(tmp_path, container, prefix):
    trained = network(1)
    state = {prefix + key: value for key, value in trained.state_dict().items()}
    torch.save({"epoch": 3, container: state, "lr": 0.1}, tmp_path / "w.pt")
    assert same(load_state(tmp_path / "w.pt"), snapshot(trained))


def test_prefix_of_some_keys_only_is_a_name():
    state = {"module.a": torch.ones(1), "b": torch.ones(1)}
    with pytest.raises(WeightError, match=r"module\.a"):
        load_weights(network(), state)


class Payload:
    def __reduce__(self):
        return (subprocess.check_call, (["true"],))


def test_code_in_a_file_is_not_run(tmp_path):
    torch.save({"state_dict": network().state_dict(), "extra": Payload()}, tmp_path / "w.pt")
    with pytest.raises(WeightError, match="would run code"):
        load_state(tmp_path / "w.pt")


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
@pytest.mark.parametrize("content", [b"", b"garbage that is no weight file", b"PK\x03\x04 half a zip"])
def test_damaged_files_are_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightError, match=name):
        load_state(tmp_path / name)


def test_missing_file_and_file_without_tensors(tmp_path):
    with pytest.raises(WeightError, match="no such weight file"):
        load_state(tmp_path / "none.pt")
    torch.save({"epoch": 3, "args": "x"}, tmp_path / "w.pt")
    with pytest.raises(WeightError, match=r"holds no state dict.*epoch \(int\)"):
        load_state(tmp_path / "w.pt")
    torch.save([1, 2], tmp_path / "w.pt")
    with pytest.raises(WeightError, match="holds a list"):
        load_state(tmp_path / "w.pt")


def test_renamed_key_is_reported_with_a_guess_and_nothing_changes():
    trained, fresh = network(1), network(2)
    state = trained.state_dict()
    state["3.weights"] = state.pop("3.weight")
    before = snapshot(fresh)
    with pytest.raises(WeightError) as caught:
        load_weights(fresh, state)
    text = str(caught.value)
    assert "3.weight (the file has '3.weights' of the same shape)" in text
    assert "unexpected" in text
    assert same(fresh.state_dict(), before)


def test_wrong_shape_is_reported_and_nothing_changes():
    fresh = network(2)
    state = network(1).state_dict()
    state["3.weight"] = torch.zeros(5, 4)
    before = snapshot(fresh)
    with pytest.raises(WeightError, match=r"3\.weight: network \(2, 4\), file \(5, 4\)"):
        load_weights(fresh, state)
    assert same(fresh.state_dict(), before)


def test_ignored_head_keeps_its_own_weights():
    trained, fresh = network(1), network(2)
    state = trained.state_dict()
    state["3.weight"] = torch.zeros(5, 4)
    head = fresh[3].weight.detach().clone()
    report = load_weights(fresh, state, ignore=["3.*"])
    assert torch.equal(fresh[0].weight, trained[0].weight)
    assert torch.equal(fresh[3].weight, head)
    assert report.complete
    assert set(report.ignored) == {"3.weight", "3.bias"}


def test_not_strict_loads_what_fits():
    trained, fresh = network(1), network(2)
    state = {key: value for key, value in trained.state_dict().items() if key.startswith("0.")}
    report = load_weights(fresh, state, strict=False)
    assert report.matched == ("0.weight", "0.bias")
    assert not report.complete
    assert torch.equal(fresh[0].weight, trained[0].weight)
    assert not torch.equal(fresh[3].weight, trained[3].weight)


def test_nothing_in_common_is_an_error_even_when_not_strict():
    with pytest.raises(WeightError, match="no tensor of the file fits"):
        load_weights(network(), {"other": torch.ones(1)}, strict=False)


def test_nan_in_the_file_is_refused():
    fresh = network(2)
    state = network(1).state_dict()
    state["0.weight"][0, 0, 0, 0] = float("nan")
    before = snapshot(fresh)
    with pytest.raises(WeightError, match="non-finite"):
        load_weights(fresh, state, strict=False)
    assert same(fresh.state_dict(), before)


def test_integer_weights_are_not_taken_for_floats():
    state = network(1).state_dict()
    state["0.weight"] = torch.ones(4, 3, 3, 3, dtype=torch.int8)
    with pytest.raises(WeightError, match=r"torch\.int8"):
        load_weights(network(), state)


def test_half_precision_file_is_converted():
    trained, fresh = network(1), network(2)
    load_weights(fresh, {k: v.half() if v.is_floating_point() else v for k, v in trained.state_dict().items()})
    assert fresh[0].weight.dtype == torch.float32
    assert torch.allclose(fresh[0].weight, trained[0].weight, atol=1e-3)


def test_old_file_without_batch_counters():
    state = network(1).state_dict()
    del state["1.num_batches_tracked"]
    report = load_weights(network(2), state)
    assert report.complete
    assert report.defaulted == ("1.num_batches_tracked",)


def test_rename_by_prefix_key_and_function():
    trained = network(1)
    state = {
        "encoder.conv.weight": trained[0].weight,
        "encoder.conv.bias": trained[0].bias,
        **{f"encoder.norm.{k}": v for k, v in trained[1].state_dict().items()},
        "head.w": trained[3].weight,
        "head.bias": trained[3].bias,
    }
    rename = {"encoder.conv": "0", "encoder.norm.": "1.", "head.w": "3.weight", "head": "3"}
    fresh = network(2)
    assert load_weights(fresh, state, rename=rename).complete
    assert same(fresh.state_dict(), snapshot(trained))

    prefixed = {f"net.{k}": v for k, v in trained.state_dict().items()} | {"net.extra": torch.ones(1)}
    report = load_weights(
        network(2), prefixed, rename=lambda key: None if key == "net.extra" else key.removeprefix("net.")
    )
    assert report.complete
    assert report.ignored == ("net.extra",)
    prefixed.pop("net.extra")
    assert load_weights(network(2), prefixed, rename={"net": ""}).complete


def test_rename_that_merges_two_names():
    state = network(1).state_dict()
    with pytest.raises(WeightError, match="would both become 'x'"):
        load_weights(network(), state, rename=lambda key: "x")
