"""Calibration keeps the function in eval mode and makes train mode agree with it."""

import pytest
import torch
from torch import nn

from training.backbones.mobilenetv2 import MobileNetV2
from training.backbones.norms import calibrate_norms


def folded_network():
    """Norms as an import leaves them: mean 0, variance 1 - eps, scale 1, some bias."""
    torch.manual_seed(0)
    net = MobileNetV2(num_classes=5, width=0.35, dropout=0.0)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.running_var, 1 - module.eps)
            nn.init.normal_(module.bias, mean=0.5)
    return net


def test_eval_mode_is_unchanged_and_train_mode_follows():
    net = folded_network()
    x = torch.randn(16, 3, 48, 48)
    net.eval()
    with torch.no_grad():
        before = net(x)
        jump = (net.train()(x) - before).abs().max()
    net = folded_network()
    assert calibrate_norms(net, x.split(8)) == 52
    assert net.training
    with torch.no_grad():
        after = net.eval()(x)
        assert torch.allclose(before, after, atol=1e-4 * before.abs().max())
        # Batch statistics of the calibration data are the running ones: train mode gives the same.
        step = (net.train()(x) - before).abs().max()
    assert step < 1e-3 * before.abs().max()
    assert jump > 100 * step, "without calibration train mode would jump"


def test_statistics_are_those_of_the_input():
    net = nn.Sequential(nn.BatchNorm1d(3)).eval()
    x = torch.randn(1000, 3) * torch.tensor([1.0, 2.0, 3.0]) + torch.tensor([0.0, 5.0, -2.0])
    calibrate_norms(net, [x[:300], x[300:]])
    assert torch.allclose(net[0].running_mean, x.mean(0), atol=1e-5)
    assert torch.allclose(net[0].running_var, x.var(0, correction=0), rtol=1e-4)
    assert not net.training


def test_refusals():
    with pytest.raises(ValueError, match="no batches"):
        calibrate_norms(nn.Sequential(nn.BatchNorm1d(3)), [])
    with pytest.raises(ValueError, match="norm '0' has no scale"):
        calibrate_norms(nn.Sequential(nn.BatchNorm1d(3, affine=False)), [torch.randn(4, 3)])
