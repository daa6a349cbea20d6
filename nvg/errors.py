"""The one exception whose message is written for the person at the keyboard."""


class UserError(ValueError):
    """A config value, a file or a data set the user can change is wrong.

    The message says what was found, what was expected and what to change. The command line prints it
    as one block and exits with status 2; a bug of ours is an ordinary exception with its trace.
    """


class NotFiniteError(UserError):
    """A value that must be a finite number is not."""
