"""The exceptions whose messages are written for the person at the keyboard."""


class UserError(ValueError):
    """A config value, a file or a data set the user can change is wrong.

    The message says what was found, what was expected and what to change. The command line prints it
    as one block and exits with status 2; a bug of ours is an ordinary exception with its trace.
    """


class NotFiniteError(UserError):
    """A value that must be a finite number is not."""


class BadImage(ValueError):  # noqa: N818 - it says what was found, and is no failure of the program
    """One input is not an image that can be read; the message is the reason, without the key."""
