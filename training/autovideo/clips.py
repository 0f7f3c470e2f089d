"""Primitives that say how clips come out of shards: which frames, which part of the picture, on which scale.

They set fields of the data block (`training.core.config.DataConfig`), which the loader and the transform of all systems
read: nothing here decodes or resizes by itself.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from training.autovideo.domains import choice, integers
from training.autovideo.primitive import Input, Port, Primitive, PrimitiveConfig, primitive, setting
from training.autovideo.values import Clips, Context, Shards, Value


class ClipPrimitive(Primitive):
    """Base of what changes the recipe of clips without looking at them."""

    inputs: ClassVar[Mapping[str, Input]] = {"clips": Input(Port.CLIP)}
    outputs: ClassVar[Mapping[str, Port]] = {"clips": Port.CLIP}

    def change(self, clips: Clips) -> Clips:
        """Return the changed recipe."""
        raise NotImplementedError

    def produce(self, inputs: Mapping[str, Value], state: Any, context: Context) -> dict[str, Value]:
        """See `Primitive.produce`."""
        clips = inputs["clips"]
        assert isinstance(clips, Clips)
        return {"clips": self.change(clips)}


# --- decoders ---------------------------------------------------------------------------------


class DecoderConfig(PrimitiveConfig):
    """What all decoders share."""

    frames: int = setting(8, help="frames per clip, T", unit="frames", search=choice(4, 8, 16), ge=1)
    size: int = setting(112, help="side of the network input", unit="pixels", search=choice(64, 112, 224), ge=8)
    short_side: int | None = setting(
        None, help="short side before the centre crop at evaluation; null: 8/7 of size", unit="pixels", ge=8
    )
    decoder: Literal["auto", "torchcodec", "pyav", "opencv"] = setting("auto", help="rung of the decoder ladder")
    source: Literal["index", "stream"] = setting("index", help="`index`: local shards by offset; `stream`: remote tars")
    threads: int = setting(2, help="decoding threads", ge=1)
    prefetch: int = setting(2, help="batches decoded ahead", ge=1)


class Decoder(Primitive):
    """Base of the decoders."""

    kind = "decoder"
    inputs: ClassVar[Mapping[str, Input]] = {"shards": Input(Port.SHARDS)}
    outputs: ClassVar[Mapping[str, Port]] = {"clips": Port.CLIP}
    Config: ClassVar[type[PrimitiveConfig]] = DecoderConfig

    def sampling(self) -> dict[str, Any]:
        """Return the fields of the data block that say which frames are taken."""
        raise NotImplementedError

    def clips(self, shards: Shards | None) -> Clips:
        """Return clips of some shards; None where the pipeline is only checked."""
        config = self.config
        transform = {
            "size": config.size,
            "train_crop": "center",
            "eval_short_side": config.short_side or -(-config.size * 8 // 7),
            "flip": False,
        }
        plumbing = {name: getattr(config, name) for name in ("decoder", "source", "threads", "prefetch")}
        return Clips(shards, {"num_frames": config.frames, **self.sampling(), "transform": transform, **plumbing})

    def produce(self, inputs: Mapping[str, Value], state: Any, context: Context) -> dict[str, Value]:
        """See `Primitive.produce`."""
        shards = inputs["shards"]
        assert isinstance(shards, Shards)
        return {"clips": self.clips(shards)}


@primitive("decoder/segments")
class Segments(Decoder):
    """T equal parts of the video, one frame of each: random in training, the middle one at evaluation (TSN)."""

    def sampling(self) -> dict[str, Any]:
        """See `Decoder.sampling`."""
        return {"sampling": "segments"}


class DenseConfig(DecoderConfig):
    """Neighbouring frames."""

    stride: int = setting(2, help="distance of the frames", unit="frames", search=integers(1, 4), ge=1)
    stride_jitter: int = setting(0, help="r > 0: training draws the stride from stride − r … stride + r − 1", ge=0)
    overrun: Literal["repeat", "loop"] = setting("repeat", help="beyond the end of a short video")


@primitive("decoder/dense")
class Dense(Decoder):
    """T frames `stride` apart: at a random place in training, centred at evaluation (I3D, C3D, R3D)."""

    Config: ClassVar[type[PrimitiveConfig]] = DenseConfig

    def sampling(self) -> dict[str, Any]:
        """See `Decoder.sampling`."""
        config = self.config
        return {
            "sampling": "dense",
            "stride": config.stride,
            "stride_jitter": config.stride_jitter,
            "overrun": config.overrun,
        }


# --- transforms -------------------------------------------------------------------------------


@primitive("transform/center_crop")
class CenterCrop(ClipPrimitive):
    """The centre of the picture in training, too."""

    kind = "transform"

    def change(self, clips: Clips) -> Clips:
        """See `ClipPrimitive.change`."""
        return clips.with_data(
            transform={"train_crop": "center", "train_short_side": None, "area": None, "aspect": None}
        )


@primitive("transform/multiscale_crop")
class MultiscaleCrop(ClipPrimitive):
    """Crops of 1, .875, .75 and .66 of the short side at 13 fixed places (TSN)."""

    kind = "transform"
    determinism = "seeded"

    def change(self, clips: Clips) -> Clips:
        """See `ClipPrimitive.change`."""
        return clips.with_data(
            transform={"train_crop": "multiscale", "train_short_side": None, "area": None, "aspect": None}
        )


class RandomCropConfig(PrimitiveConfig):
    """Scale of a random crop."""

    short_side: tuple[int, int] | None = setting(
        None, help="the short side before the crop is drawn between these two; null: that of evaluation", unit="pixels"
    )


@primitive("transform/random_crop")
class RandomCrop(ClipPrimitive):
    """A crop at a random place, the same for all frames of a clip."""

    kind = "transform"
    determinism = "seeded"
    Config: ClassVar[type[PrimitiveConfig]] = RandomCropConfig

    def change(self, clips: Clips) -> Clips:
        """See `ClipPrimitive.change`."""
        side = self.config.short_side
        return clips.with_data(
            transform={"train_crop": "random", "train_short_side": side and list(side), "area": None, "aspect": None}
        )


class ResizedCropConfig(PrimitiveConfig):
    """Shape of a random crop."""

    area: tuple[float, float] = setting((0.35, 1.0), help="least and largest share of the picture's area")
    aspect: tuple[float, float] = setting((0.75, 1.333), help="least and largest width / height")


@primitive("transform/random_resized_crop")
class RandomResizedCrop(ClipPrimitive):
    """A crop of random place, area and shape, scaled to the network input; the same for all frames of a clip."""

    kind = "transform"
    determinism = "seeded"
    Config: ClassVar[type[PrimitiveConfig]] = ResizedCropConfig

    def change(self, clips: Clips) -> Clips:
        """See `ClipPrimitive.change`."""
        config = self.config
        return clips.with_data(
            transform={
                "train_crop": "area",
                "area": list(config.area),
                "aspect": list(config.aspect),
                "train_short_side": None,
            }
        )


@primitive("transform/flip")
class Flip(ClipPrimitive):
    """Mirrors half of the training clips. Not for data in which direction is the label."""

    kind = "transform"
    determinism = "seeded"

    def change(self, clips: Clips) -> Clips:
        """See `ClipPrimitive.change`."""
        return clips.with_data(transform={"flip": True})


class NormaliseConfig(PrimitiveConfig):
    """Statistics."""

    by: Literal["imagenet", "symmetric", "unit", "kinetics", "kinetics_hara", "bninception"] = setting(
        help="mean and standard deviation of the channels, by the name that `TransformConfig.normalise` has for them"
    )


@primitive("transform/normalise")
class Normalise(ClipPrimitive):
    """Other statistics than those that the network's published weights expect (each network brings its own)."""

    kind = "transform"
    Config: ClassVar[type[PrimitiveConfig]] = NormaliseConfig

    def change(self, clips: Clips) -> Clips:
        """See `ClipPrimitive.change`."""
        return clips.with_data(transform={"normalise": self.config.by})


class ViewsConfig(PrimitiveConfig):
    """Views per video."""

    clips: int = setting(1, help="clips per video at evaluation, evenly spaced; more than 1 needs decoder/dense", ge=1)
    crops: Literal[1, 3] = setting(1, help="crops per clip: the centre, or three along the longer side")
    size: int | None = setting(
        None, help="side of the crops at evaluation; null: that of training", unit="pixels", ge=8
    )


@primitive("transform/views")
class Views(ClipPrimitive):
    """How many views of a video are averaged at evaluation, and when it is served."""

    kind = "transform"
    Config: ClassVar[type[PrimitiveConfig]] = ViewsConfig

    def change(self, clips: Clips) -> Clips:
        """See `ClipPrimitive.change`."""
        config = self.config
        transform: dict[str, Any] = {"eval_crops": config.crops}
        if config.size is not None:
            short = max(config.size, clips.data["transform"]["eval_short_side"])
            transform |= {"eval_size": config.size, "eval_short_side": short}
        return clips.with_data(eval_clips=config.clips, transform=transform)
