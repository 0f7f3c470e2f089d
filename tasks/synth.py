"""`fovea data synth`: videos of controlled tasks."""

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from tasks.bar import bar


def synth(
    task: Annotated[
        str,
        typer.Argument(
            help="direction, speed, order, flicker, late, static, detail, sound_or_picture or moving_sprites."
        ),
    ],
    folder: Annotated[Path, typer.Argument(help="Folder that is made; its name becomes that of the data set.")],
    size: Annotated[
        int | None, typer.Option(help="Side of the square frames, pixels; default: 64, of moving_sprites 192.")
    ] = None,
    frames: Annotated[
        int | None,
        typer.Option(
            help="Frames per video; default: 32, of moving_sprites 60. Not of sound_or_picture, which has segments."
        ),
    ] = None,
    fps: Annotated[
        int | None, typer.Option(help="Frames per second; default: 8, of sound_or_picture 6, of moving_sprites 25.")
    ] = None,
    train: Annotated[int, typer.Option(help="Videos for training.")] = 800,
    val: Annotated[int, typer.Option(help="Videos for validation.")] = 160,
    test: Annotated[int, typer.Option(help="Videos for the test.")] = 320,
    seed: Annotated[int, typer.Option(help="Another seed, other videos.")] = 0,
    noise: Annotated[float, typer.Option(help="Standard deviation of the camera noise, grey levels.")] = 4.0,
    min_gap: Annotated[int | None, typer.Option(help="Task order: least frames between the flashes.")] = None,
    segments: Annotated[int | None, typer.Option(help="sound_or_picture: segments per video; default: 5.")] = None,
    segment_frames: Annotated[
        int | None, typer.Option(help="sound_or_picture: frames per segment, 1.28 s at least; default: 8.")
    ] = None,
    informative: Annotated[
        float | None,
        typer.Option(help="sound_or_picture: probability that a segment's picture or sound tells; default: 0.4."),
    ] = None,
    distractors: Annotated[
        float | None, typer.Option(help="sound_or_picture: probability that a segment misleads; default: 0.3.")
    ] = None,
    silent: Annotated[
        float | None,
        typer.Option(help="sound_or_picture: share of videos without sound stream, up to 2/3; default: 0."),
    ] = None,
    motion: Annotated[
        str | None, typer.Option(help="moving_sprites: isotropic_slow, horizontal_fast or mixed, the default.")
    ] = None,
    regime: Annotated[
        str | None,
        typer.Option(help="moving_sprites: which frames are degraded: clean (none, the default), non_key or random."),
    ] = None,
    interval: Annotated[
        int | None, typer.Option(help="moving_sprites, non_key: from key frame to key frame; default: 10.")
    ] = None,
    schedule: Annotated[
        str | None, typer.Option(help="moving_sprites, non_key: offline (the default) or online key frames.")
    ] = None,
    cell: Annotated[
        int | None, typer.Option(help="moving_sprites: pixels of a feature cell, 8 (the default) or 16.")
    ] = None,
    camera: Annotated[
        float | None, typer.Option(help="moving_sprites: most cells per 5 frames of the background; default: 0.")
    ] = None,
    label_every: Annotated[
        int | None, typer.Option(help="moving_sprites: label every n-th frame of training videos; default: 4.")
    ] = None,
    objects: Annotated[
        tuple[int, int] | None, typer.Option(help="moving_sprites: fewest and most per video; default: 1 4.")
    ] = None,
    object_size: Annotated[
        tuple[float, float] | None, typer.Option(help="moving_sprites: sides of the frame; default: 0.18 0.34.")
    ] = None,
    kinds: Annotated[
        tuple[int, int] | None,
        typer.Option(help="moving_sprites: fewest and most degradations of a degraded frame; default: 2 3."),
    ] = None,
    blur: Annotated[
        tuple[float, float] | None,
        typer.Option(help="moving_sprites: motion blur, pixels of a frame of 192; default: 7 21."),
    ] = None,
    defocus: Annotated[
        tuple[float, float] | None,
        typer.Option(help="moving_sprites: its standard deviation, pixels of a frame of 192; default: 1.5 4."),
    ] = None,
    bars: Annotated[
        tuple[float, float] | None,
        typer.Option(help="moving_sprites: share of an object that bars cover; default: 0.3 0.7."),
    ] = None,
    rough: Annotated[
        tuple[float, float] | None, typer.Option(help="moving_sprites: added noise, grey levels; default: 20 50.")
    ] = None,
    force: Annotated[bool, typer.Option(help="Replace a folder that this command made.")] = False,
) -> None:
    """Make the videos of a controlled task: the class depends on one thing, and everything else is matched."""
    from data_specs.load import load_spec
    from infra.settings import Settings
    from tasks.ops.controlled import checked_config
    from tasks.ops.controlled_files import write_task
    from tasks.ops.init_text import relative
    from tasks.ops.listing import write_manifest
    from tasks.ops.moving_sprites import MovingSpritesConfig
    from tasks.ops.moving_sprites_files import check_name, set_up, write_sprites

    given = {
        "num_frames": frames,
        "size": size,
        "fps": fps,
        "min_gap": min_gap,
        "segments": segments,
        "segment_frames": segment_frames,
        "informative": informative,
        "distractors": distractors,
        "silent": silent,
        "motion": motion,
        "regime": regime,
        "interval": interval,
        "schedule": schedule,
        "cell": cell,
        "camera": camera,
        "label_every": label_every,
        "objects": objects,
        "object_size": object_size,
        "kinds": kinds,
        "blur": blur,
        "defocus": defocus,
        "bars": bars,
        "rough": rough,
    }
    config = checked_config(
        {
            "task": task,
            "seed": seed,
            "num_train": train,
            "num_val": val,
            "num_test": test,
            "noise": noise,
            **{name: value for name, value in given.items() if value is not None},
        }
    )
    settings = Settings()
    name = check_name(folder, settings, force) if isinstance(config, MovingSpritesConfig) else ""
    with bar("videos") if settings.progress else nullcontext() as step:
        if isinstance(config, MovingSpritesConfig):
            count = write_sprites(folder, config, force, step)
        else:
            count = write_task(folder, config, force, step)
    print(f"{count} videos of {len(config.classes)} classes in {folder}")
    print(f"the class can be told from: {config.needs}")
    if config.mirrored:
        print("a mirrored video belongs to another class: train with `flip: false`")
    if not isinstance(config, MovingSpritesConfig):
        print(f"\nNext:\n  fovea data init {folder}")
        return
    # `data init` would have to guess; what holds for these videos is known.
    for path in set_up(name, folder, config, settings):
        print(f"wrote {relative(path)}")
    print(f"wrote {relative(write_manifest(load_spec(name, settings.root / 'data_specs' / 'datasets'), settings))}")
    print("\nNext:")
    print(f"  fovea data check {name}")
    print(f"  fovea data add-system {name} lsts   # or another one that finds objects")
    print(f"  fovea reproduce {name}")
