"""A stream evaluated frame by frame: how soon it knows, and whether it says what the net says on whole clips."""

from dataclasses import dataclass

import numpy as np

from training.movinet.report.paired import Comparison, Share, accuracy, compare
from training.movinet.report.records import Results, Split


@dataclass(frozen=True, eq=False)
class Stream:
    """A stream evaluated frame by frame."""

    split: Split
    top1: Share
    state_bytes: float | None
    after: tuple[Share, ...]
    """Accuracy after 1, 2, … T frames; empty: the predictions do not have it."""
    clip: Share | None
    """Accuracy of the same net on whole clips in one call; None: no such arm."""
    largest: float | None
    """Largest difference of a score between stream and clip."""
    changed: int | None
    """Clips whose top class differs."""
    against_base: Comparison | None
    """Stream minus the net on whole clips from which it was tuned, on the same split."""


def stream_of(results: Results, resamples: int, seed: int) -> Stream | None:
    """Return what the stream's evaluation says, on test if there is one, else on val; None: there is no stream.

    Args:
        results: of `read_results`.
        resamples: of the bootstrap.
        seed: of the bootstrap.
    """
    net = results.net("movinet_stream_eval") or results.net("movinet_stream")
    if net is None:
        return None
    base = results.net("movinet_eval" if net.split == "test" else "movinet_train")
    clip = results.net(net.stage, "clip")
    running_TN = np.asarray(net.extras.get("running_top1", np.zeros((0, 0)))).T
    clips = len(net.key)
    return Stream(
        split=net.split,
        top1=accuracy([net]),
        state_bytes=net.state_bytes,
        after=tuple(Share.of(int((top_N == net.label).sum()), clips) for top_N in running_TN),
        clip=accuracy([clip]) if clip else None,
        largest=float(np.abs(net.scores - clip.scores).max()) if clip else None,
        changed=int((net.scores.argmax(1) != clip.scores.argmax(1)).sum()) if clip else None,
        against_base=compare([net], [base], (net.name, base.name), resamples=resamples, seed=seed) if base else None,
    )
