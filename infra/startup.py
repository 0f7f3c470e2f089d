"""What a program of this project does first, to start and end sooner."""

import atexit
import gc


def tame_collector() -> None:
    """Let Python's cycle collector run rarely, and not at all at the end.

    Importing torch and MLflow makes hundreds of thousands of objects that live until the end. With the default
    threshold the collector walks them again and again while they come, and once more each time when Python exits:
    seconds per process, of which a reproduction starts about ten.
    """
    gc.set_threshold(50_000, 20, 20)
    atexit.register(gc.freeze)
