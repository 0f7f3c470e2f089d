"""The head of the paper: region proposals and position-sensitive pooling (R-FCN, Dai et al. 2016).

Where R-FCN's paper leaves a choice, it is as in the code that LSTS was published with: see the comments. Suffixes:
N images, K anchors, P proposals, R regions (proposals, and objects while training), G objects, C classes.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.layers.boxes import clip_boxes, decode_boxes, encode_boxes, iou, nms_keep, nms_picks
from training.layers.ps_roi import ps_roi_pool
from training.lsts.anchors import BATCH, assign_anchors, base_anchors, grid_anchors, sample_anchors
from training.lsts.config import LSTSConfig, RFCNConfig
from training.lsts.head_base import Boxes, DetectionHead, Targets, best_boxes, mean_over_images

__all__ = ["RFCNHead", "RFCNMaps"]

PROPOSAL_STD, REGION_STD = (0.1, 0.4), (0.1, 0.2)
"""Standard deviations by which codes of centres and of sides are divided, of anchors and of regions."""
PROPOSAL_NMS = 0.7
POSITIVE = 0.5
"""IoU with an object from which a region is an example of it; below, of the background."""
LEAST = 1.0
"""Pixels that a box beyond the border keeps: the legacy code clips the first and the last pixel."""


class RFCNMaps(NamedTuple):
    """Raw maps of features of H × W cells; A anchors per cell."""

    proposal_class: Tensor
    """(N,2·A,H,W) logits, all anchors' background before all anchors' foreground."""
    proposal_box: Tensor
    """(N,A·4,H,W) codes."""
    region_class: Tensor
    """(N,(1+C)·bins²,H,W) position-sensitive scores, background first."""
    region_box: Tensor
    """(N,2·4·bins²,H,W) position-sensitive codes; the first 4 are the background's and nobody reads them."""


class RFCNHead(DetectionHead):
    """Half of the channels propose regions, the other half scores them; four 1×1 convolutions and no more.

    Args:
        config: architecture; its head must be an `rfcn`.
        classes: number of classes, without background.
    """

    def __init__(self, config: LSTSConfig, classes: int) -> None:
        if not isinstance(config.head, RFCNConfig):
            raise ValueError(f"the R-FCN head needs a head of kind rfcn, got {config.head.kind}")
        super().__init__(config.backbone.feature_channels, classes)
        self.config, self.head, self.stride = config, config.head, config.backbone.stride
        half, cells = self.in_channels // 2, self.head.bins**2
        base_A4 = base_anchors(self.head.anchor_scales, self.head.anchor_ratios, self.stride)
        self.base_A4: Tensor
        self.register_buffer("base_A4", base_A4, persistent=False)
        self.proposal_class = nn.Conv2d(half, 2 * len(base_A4), 1)
        self.proposal_box = nn.Conv2d(half, 4 * len(base_A4), 1)
        self.region_class = nn.Conv2d(half, (1 + classes) * cells, 1)
        self.region_box = nn.Conv2d(half, 2 * 4 * cells, 1)
        self.initialise()

    def initialise(self) -> None:
        """Draw the weights from N(0, 0.01²); no bias."""
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.01)
            else:
                nn.init.zeros_(parameter)

    def forward(self, feature_NCHW: Tensor) -> RFCNMaps:
        """Return the maps."""
        first, second = feature_NCHW.chunk(2, 1)
        return RFCNMaps(
            self.proposal_class(first), self.proposal_box(first), self.region_class(second), self.region_box(second)
        )

    # --- proposals -------------------------------------------------------------------------------

    def _by_anchor(self, maps: RFCNMaps) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits (N,K,2), codes (N,K,4) and anchors (K,4), in the order of `grid_anchors`."""
        anchors = len(self.base_A4)
        logit = maps.proposal_class.float().unflatten(1, (2, anchors)).permute(0, 3, 4, 2, 1).flatten(1, 3)
        code = maps.proposal_box.float().unflatten(1, (anchors, 4)).permute(0, 3, 4, 1, 2).flatten(1, 3)
        height, width = maps.proposal_class.shape[2:]
        return logit, code, grid_anchors(self.base_A4, height, width, self.stride)

    def propose(self, maps: RFCNMaps, size_N2: Tensor, *, may_wait: bool = False) -> tuple[Tensor, Tensor]:
        """Return the proposed regions, without gradients.

        Args:
            maps: what `forward` returned.
            size_N2: height and width of the images.
            may_wait: as of `nms_picks`.

        Returns:
            box_NP4 by falling score, 0 where not valid, and valid_NP.
        """
        with torch.no_grad():
            logit_NK2, code_NK4, anchor_K4 = self._by_anchor(maps)
            # Cells that an image alone would not have: it is padded for the sake of others.
            height, width = maps.proposal_class.shape[2:]
            y = torch.arange(height, device=size_N2.device) * self.stride < size_N2[:, :1]
            x = torch.arange(width, device=size_N2.device) * self.stride < size_N2[:, 1:]
            cell_NHW = y[:, :, None] & x[:, None]
            inside_NK = cell_NHW[..., None].expand(-1, -1, -1, len(self.base_A4)).flatten(1)
            # The difference sorts like the probability, and does not saturate.
            score_NK = torch.where(inside_NK, logit_NK2[..., 1] - logit_NK2[..., 0], -torch.inf)
            score, index = score_NK.topk(min(self.head.proposals_before, score_NK.shape[1]))
            code = code_NK4.gather(1, index[..., None].expand(-1, -1, 4))
            box = clip_boxes(decode_boxes(code, anchor_K4[index], PROPOSAL_STD), size_N2, LEAST)
            pick_NP, valid_NP = nms_picks(box, score, PROPOSAL_NMS, self.head.proposals, may_wait=may_wait)
            box_NP4 = box.gather(1, pick_NP[..., None].expand(-1, -1, 4))
            return torch.where(valid_NP[..., None], box_NP4, 0), valid_NP

    def _score(self, maps: RFCNMaps, box_NR4: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (N,R,1+C) and the foreground's codes (N,R,4): means over the bins."""
        score = ps_roi_pool(maps.region_class, box_NR4, self.head.bins, self.stride).mean((-2, -1))
        code = ps_roi_pool(maps.region_box[:, 4 * self.head.bins**2 :], box_NR4, self.head.bins, self.stride)
        return score, code.mean((-2, -1))

    # --- training --------------------------------------------------------------------------------

    def losses(self, maps: RFCNMaps, targets: Targets, size_N2: Tensor, seed_N: Tensor) -> dict[str, Tensor]:
        """Return proposal_class, proposal_box, class, box and loss; see `DetectionHead.losses`."""
        targets = targets.with_row()
        parts = self._proposal_losses(maps, targets, size_N2, seed_N) | self._region_losses(maps, targets, size_N2)
        means = {name: mean_over_images(value_N, targets.weight_N) for name, value_N in parts.items()}
        return means | {"loss": torch.stack(list(means.values())).sum()}

    def _proposal_losses(self, maps: RFCNMaps, targets: Targets, size_N2: Tensor, seed_N: Tensor) -> dict[str, Tensor]:
        """Per image: cross-entropy, mean over the sampled anchors, and smooth L1, sum over them by 256."""
        logit_NK2, code_NK4, anchor_K4 = self._by_anchor(maps)
        with torch.no_grad():
            label_NK, match_NK = assign_anchors(anchor_K4, targets, size_N2)
            label_NHWA = label_NK.unflatten(1, (*maps.proposal_class.shape[2:], -1))
            fg, fg_counts, bg, bg_counts = sample_anchors(label_NHWA, seed_N)
            match = match_NK.gather(1, fg)[..., None].expand(-1, -1, 4)
            goal = encode_boxes(targets.box_NG4.gather(1, match), anchor_K4[fg], PROPOSAL_STD)
        index, counts = torch.cat((fg, bg), 1), torch.cat((fg_counts, bg_counts), 1)
        logit = logit_NK2.gather(1, index[..., None].expand(-1, -1, 2))
        label = F.pad(torch.ones_like(fg), (0, bg.shape[1]))
        entropy = F.cross_entropy(logit.transpose(1, 2), label, reduction="none")
        code = code_NK4.gather(1, fg[..., None].expand(-1, -1, 4))
        distance = F.smooth_l1_loss(code, goal, reduction="none").sum(-1)
        return {
            "proposal_class": torch.where(counts, entropy, 0).sum(1) / counts.sum(1).clamp_min(1),
            "proposal_box": torch.where(fg_counts, distance, 0).sum(1) / BATCH,
        }

    def _region_losses(self, maps: RFCNMaps, targets: Targets, size_N2: Tensor) -> dict[str, Tensor]:
        """Per image, of the regions with the largest losses: mean cross-entropy, and smooth L1 by their number."""
        with torch.no_grad():
            box_NP4, valid_NP = self.propose(maps, size_N2)
            box_NR4 = torch.cat((box_NP4, targets.box_NG4), 1)
            valid_NR = torch.cat((valid_NP, targets.label_NG >= 0), 1)
            overlap = iou(box_NR4, targets.box_NG4) * (targets.label_NG >= 0)[:, None]
            overlap_NR, match_NR = overlap.max(-1)
            positive_NR = overlap_NR >= POSITIVE
            label_NR = torch.where(positive_NR, targets.label_NG.gather(1, match_NR) + 1, 0)
            matched = targets.box_NG4.gather(1, match_NR[..., None].expand(-1, -1, 4))
            goal_NR4 = encode_boxes(matched, box_NR4, REGION_STD)
        score, code = self._score(maps, box_NR4)
        entropy_NR = F.cross_entropy(score.transpose(1, 2), label_NR, reduction="none")
        distance_NR = F.smooth_l1_loss(code, goal_NR4, reduction="none").sum(-1)
        distance_NR = torch.where(positive_NR, distance_NR, 0)
        hardness = torch.where(valid_NR, (entropy_NR + distance_NR).detach(), -torch.inf)
        most, chosen = hardness.topk(min(self.head.hard_examples, hardness.shape[1]))
        counts = most > -torch.inf
        entropy, distance = (torch.where(counts, loss.gather(1, chosen), 0) for loss in (entropy_NR, distance_NR))
        return {
            "class": entropy.sum(1) / counts.sum(1).clamp_min(1),
            "box": distance.sum(1) / self.head.hard_examples,
        }

    # --- inference -------------------------------------------------------------------------------

    @torch.no_grad()
    def detect(self, maps: RFCNMaps, size_N2: Tensor) -> Boxes:
        """Return what is found; each region has one box, which all classes share."""
        region_NP4, valid_NP = self.propose(maps, size_N2, may_wait=True)
        score, code = self._score(maps, region_NP4)
        box_NP4 = clip_boxes(decode_boxes(code, region_NP4, REGION_STD), size_N2, LEAST)
        score_NCP = score.softmax(-1)[..., 1:].transpose(1, 2)
        reported = valid_NP[:, None] & (score_NCP > self.config.score_threshold)
        score_NCP = torch.where(reported, score_NCP, -torch.inf)
        keep_NCP = nms_keep((iou(box_NP4, box_NP4) > self.config.nms)[:, None], score_NCP)
        score_NCP = torch.where(keep_NCP, score_NCP, -torch.inf)
        label_NCP = torch.arange(self.classes, device=score.device)[:, None].expand_as(score_NCP)
        box_NCP4 = box_NP4[:, None].expand(-1, self.classes, -1, -1)
        return best_boxes(box_NCP4.flatten(1, 2), score_NCP.flatten(1), label_NCP.flatten(1), self.config.max_boxes)
