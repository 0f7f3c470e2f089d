"""Sources whose videos come with boxes: ImageNet VID and DET, and json files in the layout of COCO-video.

A part of these kinds gives each sample a `boxes.json` member (`data_specs.boxes`). Frame numbers of the annotation are
frame numbers of the stored clip, so such data sets keep the source's frames: `clip.representation: mp4`,
`clip.fps: null` and `clip.audio: drop` (`data_specs.load` says so).

With `fps`, a video of the part is a folder of image files (JPEG or PNG, numbered), or one image file, which is a clip
of one frame; their rate is only what their maker says, and the number decides nothing but times that are shown.
"""

from typing import Literal

from pydantic import Field, model_validator

from data_specs.strict import Strict

__all__ = ["BoxSource", "CocoVideoSource", "ImagenetDetSource", "ImagenetVidSource", "nominal_rate"]


class ImagenetVidSource(Strict):
    """ImageNet VID: frame folders `Data/VID/<subset>/…/<video>/`, annotations `Annotations/VID/…/<video>/<frame>.xml`.

    Without a list, every folder with pictures below `Data/VID` is a video.
    """

    kind: Literal["imagenet_vid"] = "imagenet_vid"
    root: str
    """Folder with `Data` and `Annotations` (called ILSVRC or ILSVRC2015), or the URL of one with `Data`."""
    subset: Literal["train", "val", "test"] | None = None
    """Only videos of this folder."""
    annotations: str | None = None
    """Folder of `Annotations/VID` on this machine, where it does not lie below `root` (a URL)."""
    videos: str | None = None
    """List of videos: `val/ILSVRC2015_val_00000000 1 0 464`, that is folder, number of its first frame in the whole
    set (from 1), first frame, number of frames."""
    frames: str | None = None
    """List of labelled frames: `train/ILSVRC2015_VID_train_0000/ILSVRC2015_train_00000000 1 10 300`, that is folder,
    a number that is not used, frame, number of frames. Its videos are stored whole."""
    labelled: Literal["listed", "all"] = "listed"
    """With `frames`: which frames count as labelled, those of the list, or every one that has an annotation."""
    frames_from: Literal[0, 1] = 0
    """Number of a video's first frame in `frames`: 0 as Deep Feature Flow and LSTS read the list, 1 as mmtracking."""
    fps: float = Field(default=30.0, gt=0, le=1000)

    @model_validator(mode="after")
    def _one_list(self) -> "ImagenetVidSource":
        if self.videos and self.frames:
            raise ValueError("give `videos` or `frames`, not both: each of the lists says which videos there are")
        if not self.frames and (self.labelled != "listed" or self.frames_from):
            raise ValueError("`labelled` and `frames_from` say how to read `frames`, which is not given")
        return self


class ImagenetDetSource(Strict):
    """ImageNet DET: pictures `Data/DET/<subset>/…/<name>.JPEG`, annotations `Annotations/DET/<subset>/…/<name>.xml`.

    Each picture with an object of one of the data set's classes is a clip of one frame; others are left out.
    """

    kind: Literal["imagenet_det"] = "imagenet_det"
    root: str
    """Folder with `Data` and `Annotations`, or the URL of one with `Data`."""
    subset: Literal["train", "val", "test"] | None = None
    """Only pictures of this folder."""
    annotations: str | None = None
    """Folder of `Annotations/DET` on this machine, where it does not lie below `root` (a URL)."""
    images: str | None = None
    """List of pictures: `train/ILSVRC2013_train/n02691156/n02691156_10005 1`, the name without extension and a number
    that is not used."""
    fps: float = Field(default=30.0, gt=0, le=1000)


class CocoVideoSource(Strict):
    """A json file with `videos`, `images` (their frames), `annotations`, `categories`, as of CocoVID and mmtracking."""

    kind: Literal["coco_video"] = "coco_video"
    root: str
    """What `file_name` of the images (frame folders) or `name` of the videos (video files) is relative to."""
    file: str
    fps: float | None = Field(default=None, gt=0, le=1000)
    """Given: videos are frame folders. None: they are video files, named by `file_name` or `name` of `videos`."""
    frames_from: Literal[0, 1] = 0
    """`frame_id` of a video's first frame."""
    labelled: Literal["all", "train"] = "all"
    """Which frames count as labelled: all of `images`, or those with `is_vid_train_frame`."""
    split: Literal["train", "val", "test"] | None = None
    """What all of its videos belong to; for `split: official` of the part."""


BoxSource = ImagenetVidSource | ImagenetDetSource | CocoVideoSource
"""Kinds whose videos have boxes."""


def nominal_rate(source: object) -> float | None:
    """Return the frame rate (1/s) of a source's frame folders and images; None where its videos are files."""
    return source.fps if isinstance(source, BoxSource) else None
