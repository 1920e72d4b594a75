"""The one exception that stands for a mistake of the user's, not of the program's."""


class InputError(ValueError):
    """What the user gave cannot be used. The message is one line: what, expected, found."""
