"""A single-stage head without anchors (FCOS, Tian et al. 2019), on features of one stride.

Suffixes: N images, K = H·W cells in order of rows, G objects, C classes.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.layers.boxes import areas, clip_boxes, generalised_iou, nms_picks
from training.lsts.config import DenseConfig, LSTSConfig
from training.lsts.head_base import Boxes, DetectionHead, Targets, best_boxes, mean_over_images

__all__ = ["DenseHead", "DenseMaps"]

PRIOR = 0.01
"""Probability of every class at every cell before training (Lin et al. 2017, section 3.3)."""
ALPHA, GAMMA = 0.25, 2.0
"""Of the focal loss."""
CANDIDATES = 1000
"""Best scores of an image that go into the suppression."""
FARTHEST = 6.0
"""Largest logarithm of a distance in strides."""


class DenseMaps(NamedTuple):
    """Raw maps of features of H × W cells."""

    class_NCHW: Tensor
    """Logits."""
    side_N4HW: Tensor
    """Logarithms of the distances, in strides, from a cell's centre to left, top, right and bottom."""
    centre_N1HW: Tensor
    """Logit of the centre-ness."""


class DenseHead(DetectionHead):
    """Two towers of 3×3 convolutions with group norm; scores come from one, distances and centre-ness from the other.

    Group norm, because weights of N(0, 0.01²) without any norm train slowly from scratch, and batch norm would
    need large batches. Its statistics are an image's own, padding included.

    Args:
        config: architecture; its head must be a `dense`.
        classes: number of classes.
    """

    def __init__(self, config: LSTSConfig, classes: int) -> None:
        if not isinstance(config.head, DenseConfig):
            raise ValueError(f"the dense head needs a head of kind dense, got {config.head.kind}")
        super().__init__(config.backbone.feature_channels, classes)
        self.config, self.head, self.stride = config, config.head, config.backbone.stride
        self.class_tower, self.box_tower = self._tower(), self._tower()
        width = self.head.channels if self.head.convs else self.in_channels
        self.class_logit = nn.Conv2d(width, classes, 3, padding=1)
        self.side = nn.Conv2d(width, 4, 3, padding=1)
        self.centre = nn.Conv2d(width, 1, 3, padding=1)
        self.initialise()

    def _tower(self) -> nn.Sequential:
        layers: list[nn.Module] = []
        for number in range(self.head.convs):
            channels = self.head.channels
            before = channels if number else self.in_channels
            norm = nn.GroupNorm(math.gcd(32, channels), channels)
            layers += [nn.Conv2d(before, channels, 3, padding=1, bias=False), norm, nn.ReLU()]
        return nn.Sequential(*layers)

    def initialise(self) -> None:
        """Draw the weights from N(0, 0.01²); biases make every class as improbable as `PRIOR`, else they are 0."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.GroupNorm):
                module.reset_parameters()
        nn.init.constant_(self.class_logit.bias, -math.log(1 / PRIOR - 1))  # type: ignore[arg-type]  # it has a bias

    def forward(self, feature_NCHW: Tensor) -> DenseMaps:
        """Return the maps."""
        boxes = self.box_tower(feature_NCHW)
        return DenseMaps(self.class_logit(self.class_tower(feature_NCHW)), self.side(boxes), self.centre(boxes))

    def _cells(self, maps: DenseMaps, size_N2: Tensor) -> tuple[Tensor, Tensor]:
        """Return centres of the cells (K,2) as x, y in pixels, and which of them lie inside their images (N,K)."""
        height, width = maps.class_NCHW.shape[2:]
        x = (torch.arange(width, device=size_N2.device) + 0.5) * self.stride
        y = (torch.arange(height, device=size_N2.device) + 0.5) * self.stride
        centre_K2 = torch.stack((x.expand(height, -1), y[:, None].expand(-1, width)), -1).flatten(0, 1)
        return centre_K2, (centre_K2 < size_N2.flip(-1)[:, None]).all(-1)

    def _decode(self, side: Tensor, centre: Tensor) -> Tensor:
        """(…,4) logarithms and (…,2) centres → (…,4) boxes."""
        distance = side.clamp_max(FARTHEST).exp() * self.stride
        return torch.cat((centre - distance[..., :2], centre + distance[..., 2:]), -1)

    # --- training --------------------------------------------------------------------------------

    def assign(self, centre_K2: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
        """Say which cells are examples of which object.

        A cell is one of an object's if its centre lies inside the box and is, along both axes, less than
        `centre_radius` strides from the box's centre; among several objects the smallest has it.

        Args:
            centre_K2: x, y of the cells' centres.
            targets: objects, at least one row.

        Returns:
            positive_NK and match_NK, the row of the object.
        """
        box = targets.box_NG4[:, None]
        low, high = centre_K2[:, None] - box[..., :2], box[..., 2:] - centre_K2[:, None]  # (N,K,G,2)
        near = (low - high).abs() / 2 < self.head.centre_radius * self.stride
        inside_NKG = ((low > 0) & (high > 0) & near).all(-1) & (targets.label_NG >= 0)[:, None]
        area_NKG = torch.where(inside_NKG, areas(box), torch.inf)
        smallest_NK, match_NK = area_NKG.min(-1)
        return smallest_NK < torch.inf, match_NK

    def losses(self, maps: DenseMaps, targets: Targets, size_N2: Tensor, seed_N: Tensor) -> dict[str, Tensor]:
        """Return class, box, centre and loss; see `DetectionHead.losses`. Nothing is drawn.

        Per image: focal loss, summed, by the number of positive cells; GIoU loss of these, a mean weighted with the
        true centre-ness; binary cross-entropy of the centre-ness, their mean.
        """
        targets = targets.with_row()
        logit_NKC, side_NK4, centreness_NK = self._by_cell(maps)
        with torch.no_grad():
            centre_K2, inside_NK = self._cells(maps, size_N2)
            positive_NK, match_NK = self.assign(centre_K2, targets)
            positive_NK = positive_NK & inside_NK
            box_NK4 = targets.box_NG4.gather(1, match_NK[..., None].expand(-1, -1, 4))
            label_NK = targets.label_NG.gather(1, match_NK).clamp_min(0)
            classes = torch.arange(self.classes, device=label_NK.device)
            hot_NKC = ((label_NK[..., None] == classes) & positive_NK[..., None]).float()
            low, high = centre_K2 - box_NK4[..., :2], box_NK4[..., 2:] - centre_K2
            ratio = torch.minimum(low, high) / torch.maximum(low, high).clamp_min(1e-6)
            true_NK = torch.where(positive_NK, ratio.clamp_min(0).prod(-1).sqrt(), 0)
            count_N = positive_NK.sum(1).clamp_min(1)
        focal_NK = focal_loss(logit_NKC, hot_NKC).sum(-1)
        distance_NK = 1 - generalised_iou(self._decode(side_NK4, centre_K2), box_NK4)
        entropy_NK = F.binary_cross_entropy_with_logits(centreness_NK, true_NK, reduction="none")
        parts = {
            "class": torch.where(inside_NK, focal_NK, 0).sum(1) / count_N,
            "box": (torch.where(positive_NK, distance_NK, 0) * true_NK).sum(1) / true_NK.sum(1).clamp_min(1e-6),
            "centre": torch.where(positive_NK, entropy_NK, 0).sum(1) / count_N,
        }
        means = {name: mean_over_images(value_N, targets.weight_N) for name, value_N in parts.items()}
        return means | {"loss": torch.stack(list(means.values())).sum()}

    @staticmethod
    def _by_cell(maps: DenseMaps) -> tuple[Tensor, Tensor, Tensor]:
        """Return fp32 logits (N,K,C), sides (N,K,4) and centre-ness (N,K)."""
        logit, side, centre = (part.float().flatten(2).transpose(1, 2) for part in maps)
        return logit, side, centre.squeeze(-1)

    # --- inference -------------------------------------------------------------------------------

    @torch.no_grad()
    def detect(self, maps: DenseMaps, size_N2: Tensor) -> Boxes:
        """Return what is found; the score is the geometric mean of class probability and centre-ness."""
        logit_NKC, side_NK4, centreness_NK = self._by_cell(maps)
        centre_K2, inside_NK = self._cells(maps, size_N2)
        score_NKC = (logit_NKC.sigmoid() * centreness_NK.sigmoid()[..., None]).sqrt()
        reported = (score_NKC > self.config.score_threshold) & inside_NK[..., None]
        score = torch.where(reported, score_NKC, -torch.inf).flatten(1)
        score, index = score.topk(min(max(CANDIDATES, self.config.max_boxes), score.shape[1]))
        cell, label = index // self.classes, index % self.classes
        side = side_NK4.gather(1, cell[..., None].expand(-1, -1, 4))
        box = clip_boxes(self._decode(side, centre_K2[cell]), size_N2)
        pick, valid = nms_picks(box, score, self.config.nms, self.config.max_boxes, group_BN=label, may_wait=True)
        score = torch.where(valid, score.gather(1, pick), -torch.inf)
        box = box.gather(1, pick[..., None].expand(-1, -1, 4))
        return best_boxes(box, score, label.gather(1, pick), self.config.max_boxes)


def focal_loss(logit: Tensor, target: Tensor) -> Tensor:
    """Return −α_t·(1 − p_t)^γ·log p_t, elementwise (Lin et al. 2017, equation 5); the target is 0 or 1."""
    entropy = F.binary_cross_entropy_with_logits(logit, target, reduction="none")
    probability = logit.sigmoid()
    wrong = target * (1 - probability) + (1 - target) * probability
    return (target * ALPHA + (1 - target) * (1 - ALPHA)) * wrong.pow(GAMMA) * entropy
