"""Reference figure: logistic regression on frozen features of an imported MobileNetV2.

    python benchmarks/reference_features.py <folder with manifest.csv> <weights.tflite or .safetensors>

Per clip, 8 frames (the middle of 8 equal parts), short side 256, centre crop 224; mean and standard deviation
of the 1280 features over the frames; standardised; logistic regression. Cross-validated over whole groups (no
source video or performer on both sides), stratified by class; the second column divides clips instead, so
clips of one source are on both sides. The same network with shuffled weights is the control.
"""

import argparse
import csv
from collections import Counter
from pathlib import Path

import av
import cv2
import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from training.backbones.mobilenetv2 import MobileNetV2
from training.backbones.tflite import load_mobilenetv2
from training.core.weights import load_weights

FRAMES = 8


def read_clip(path: Path) -> Tensor:
    """Return (8,3,224,224) float32 in [-1, 1]."""
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    if not frames:
        raise ValueError(f"{path}: no frames")
    chosen = ((np.arange(FRAMES) + 0.5) * len(frames) / FRAMES).astype(int)
    return torch.stack([to_input(frames[index]) for index in chosen])


def to_input(frame: np.ndarray) -> Tensor:
    """Resize to short side 256, crop the centre, scale to [-1, 1]."""
    height, width = frame.shape[:2]
    scale = 256 / min(height, width)
    size = (max(round(width * scale), 256), max(round(height * scale), 256))
    frame = cv2.resize(frame, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    top, left = (frame.shape[0] - 224) // 2, (frame.shape[1] - 224) // 2
    crop = np.ascontiguousarray(frame[top : top + 224, left : left + 224])
    return torch.from_numpy(crop).permute(2, 0, 1).float() / 127.5 - 1


def load_network(path: Path) -> MobileNetV2:
    if path.suffix == ".tflite":
        return load_mobilenetv2(path)[0]
    network = MobileNetV2(padding="tf_same")
    load_weights(network, path, ignore=["classifier.*"])
    return network.eval()


def shuffled(network: MobileNetV2) -> MobileNetV2:
    """Same architecture, each convolution's weights permuted: same distribution, no knowledge."""
    copy = MobileNetV2(padding="tf_same")
    load_weights(copy, network.state_dict(), ignore=["classifier.*"])
    generator = torch.Generator().manual_seed(0)
    for module in copy.modules():
        if isinstance(module, nn.Conv2d):
            order = torch.randperm(module.weight.numel(), generator=generator)
            module.weight.data = module.weight.data.flatten()[order].view_as(module.weight)
    return copy.eval()


@torch.inference_mode()
def clip_features(network: MobileNetV2, frames: Tensor) -> np.ndarray:
    """Return (2560,): mean and standard deviation over the frames."""
    vectors = network.features_map(frames.contiguous(memory_format=torch.channels_last)).mean((2, 3))
    return torch.cat((vectors.mean(0), vectors.std(0))).numpy()


def accuracy(features: np.ndarray, label: np.ndarray, group: np.ndarray, by_group: bool, seeds: int) -> list[float]:
    """Return the cross-validated accuracy for each seed of the folds."""
    folds = min(5, min(Counter(label.tolist()).values()))
    if by_group:
        folds = min(folds, len(set(group.tolist())))
    results = []
    for seed in range(seeds):
        kind = StratifiedGroupKFold if by_group else StratifiedKFold
        right = 0
        groups = group if by_group else None
        for train, test in kind(folds, shuffle=True, random_state=seed).split(features, label, groups):
            # Fewer clips than features: the rotation into their span changes nothing but the time.
            model = make_pipeline(StandardScaler(), PCA(), LogisticRegression(C=0.01, max_iter=2000))
            model.fit(features[train], label[train])
            right += int((model.predict(features[test]) == label[test]).sum())
        results.append(right / len(label))
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--subsets", nargs="+", default=["weizmann4", "room_actions", "surv_fight"])
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    network = load_network(options.weights)
    networks = {"imported": network, "shuffled": shuffled(network)}
    for net in networks.values():
        net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with (options.data / "manifest.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["subset"] in options.subsets]
    print(f"mean accuracy over {options.seeds} seeds of folds (lowest … highest): by group; by clip", flush=True)
    for subset in options.subsets:
        mine = [row for row in rows if row["subset"] == subset]
        if not mine:
            parser.error(f"manifest.csv has no subset {subset!r}")
        label = np.array([row["label"] for row in mine])
        group = np.array([row["group"] for row in mine])
        features: dict[str, list[np.ndarray]] = {name: [] for name in networks}
        for row in mine:
            frames = read_clip(options.data / row["file"])
            for name, net in networks.items():
                features[name].append(clip_features(net, frames))
        majority = max(Counter(label.tolist()).values()) / len(label)
        print(
            f"{subset}: {len(mine)} clips, {len(set(group))} groups, {len(set(label))} classes, majority {majority:.2f}"
        )
        for name in networks:
            table = np.stack(features[name])
            columns = [accuracy(table, label, group, by_group, options.seeds) for by_group in (True, False)]
            cells = [f"{np.mean(values):.2f} ({min(values):.2f} … {max(values):.2f})" for values in columns]
            print(f"  {name:<9} {'; '.join(cells)}", flush=True)


if __name__ == "__main__":
    main()
