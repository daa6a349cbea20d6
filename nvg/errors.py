"""The exceptions whose messages are written for the person at the keyboard."""

from collections.abc import Sequence


class UserError(ValueError):
    """A config value, a file or a data set the user can change is wrong.

    The message says what was found, what was expected and what to change. The command line prints it
    as one block and exits with status 2; a bug of ours is an ordinary exception with its trace.
    """


class Changed(UserError):  # noqa: N818 - nothing failed: what is there was asked for, and is so no more
    """What is there was made of other settings or data than are asked for now, so it cannot be gone on with.

    Attributes:
        changes: what differs, "key: old → new" each.
    """

    def __init__(self, message: str, changes: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.changes = list(changes)


class NotFiniteError(UserError):
    """A value that must be a finite number is not."""


class BadImage(ValueError):  # noqa: N818 - it says what was found, and is no failure of the program
    """One input is not an image that can be read; the message is the reason, without the key."""
