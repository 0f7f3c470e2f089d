"""Errors that end a stage with one message instead of a stack trace."""


class StageFailed(RuntimeError):
    """A stage cannot finish; the message says why."""


class TrainingDiverged(StageFailed):
    """The loss became NaN or infinite; nothing after the last checkpoint is kept."""
