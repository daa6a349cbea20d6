"""The one way in which a setting is refused."""


def check(good: bool, message: str) -> None:
    """Raises ValueError with a message that names key, value and what is allowed, unless all is good."""
    if not good:
        raise ValueError(message)
