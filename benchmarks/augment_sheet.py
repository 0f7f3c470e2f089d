"""A picture of what each augmenter does, for people: four frames of one drawn clip per augmenter, its name below.

Usage: python -m benchmarks.augment_sheet sheet.png [--seed 8] [--only augment/fog augment/rain]
"""

import argparse
import math
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.autovideo.augment.augmentation import Augmentation
from training.autovideo.augment.augmenter import Augmenter
from training.autovideo.catalogue import catalogue
from training.autovideo.use import Use

HEIGHT, WIDTH, FRAMES = 90, 120, 4
COLUMNS = 5
CAPTION = 16


def scene(frames: int, phase: float) -> Tensor:
    """Return a drawn clip, (3,T,H,W): sky, hills, a house, a ball that flies."""
    pictures = []
    for frame in range(frames):
        picture = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        sky = np.linspace(0, 1, HEIGHT)[:, None, None]
        picture[:] = ((1 - sky) * (95, 150, 220) + sky * (225, 215, 190)).astype(np.uint8)
        hills = [[x, int(58 + 9 * math.sin(x / 17 + phase))] for x in range(0, WIDTH + 1, 4)]
        ground = np.array([*hills, [WIDTH, HEIGHT], [0, HEIGHT]], np.int32)
        cv2.fillPoly(picture, [ground], (70, 130, 60))
        cv2.rectangle(picture, (70, 42), (104, 74), (190, 120, 90), -1)
        cv2.fillPoly(picture, [np.array([[66, 42], [108, 42], [87, 26]], np.int32)], (120, 40, 40))
        cv2.rectangle(picture, (76, 50), (84, 58), (245, 235, 150), -1)
        cv2.rectangle(picture, (91, 56), (99, 74), (80, 50, 40), -1)
        x, y = 12 + frame * 18, int(62 - 40 * math.sin(math.pi * (frame + 0.7) / 4.2))
        cv2.circle(picture, (x, y), 8, (230, 60, 40), -1, cv2.LINE_AA)
        cv2.putText(picture, str(frame), (4, 86), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (250, 250, 250), 1, cv2.LINE_AA)
        pictures.append(picture)
    return torch.from_numpy(np.stack(pictures)).permute(3, 0, 1, 2).float() / 255


def tile(video_CTHW: Tensor, name: str) -> NDArray[np.uint8]:
    """Return the frames side by side with a name below."""
    frames = (video_CTHW * 255).round().byte().permute(2, 1, 3, 0).reshape(HEIGHT, -1, 3).numpy()
    picture = np.full((HEIGHT + CAPTION, frames.shape[1] + 6, 3), 255, np.uint8)
    picture[:HEIGHT, : frames.shape[1]] = frames
    cv2.putText(picture, name, (2, HEIGHT + 12), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (0, 0, 0), 1, cv2.LINE_AA)
    return picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--seed", type=int, default=8)
    parser.add_argument("--only", nargs="*", default=[])
    options = parser.parse_args()
    clips = torch.stack([scene(FRAMES, 0.0), scene(FRAMES, 2.0).flip(3)])
    seeds, targets = torch.tensor([options.seed, options.seed + 1]), torch.eye(2)
    tiles = [tile(clips[0], "the clip")]
    uses = []
    for name, item in catalogue().items():
        if issubclass(item, Augmenter):
            uses.append((name, Use(use=name, settings={"p": 1.0} if "p" in item.Config.model_fields else {})))
    corruptions = catalogue()["augment/imagenet_c"].domains()["corruption"]
    for corruption in getattr(corruptions, "values", ()):
        settings = {"p": 1.0, "corruption": corruption, "severity": 3}
        uses.append((f"imagenet_c {corruption} 3", Use(use="augment/imagenet_c", settings=settings)))
    for name, use in uses:
        if not options.only or use.use in options.only:
            changed, _ = Augmentation([use])(clips, seeds, targets)
            tiles.append(tile(changed[0], name))
    tiles += [np.full_like(tiles[0], 255)] * (-len(tiles) % COLUMNS)
    rows = [np.concatenate(tiles[start : start + COLUMNS], 1) for start in range(0, len(tiles), COLUMNS)]
    cv2.imwrite(str(options.file), np.concatenate(rows)[..., ::-1])


if __name__ == "__main__":
    main()
