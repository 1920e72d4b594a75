"""What stands for a mistake of the user's, not of the program's, and the commonest checks for one."""

import math
from collections.abc import Mapping
from typing import Any


class InputError(ValueError):
    """What the user gave cannot be used. The message is one line: what, expected, found."""


def check_range(values: Mapping[str, Any], *names: str, least: float, below: float = math.inf) -> None:
    """Raise InputError for the first number outside of [least, below).

    Args:
        values: Dict of name -> number, such as `vars(settings)`. None is no number, and passes.
        *names: Which of them are checked; none: all.

    Example:
        >>> check_range({"tile": 0}, least=1)
        InputError: tile: must be at least 1, not 0
    """
    wanted = f"at least {least}" + (f" and below {below}" if below < math.inf else "")
    for name in names or values:
        if values[name] is not None and not least <= values[name] < below:
            raise InputError(f"{name}: must be {wanted}, not {values[name]}")


def check_choice(name: str, value: Any, *choices: Any) -> None:
    """Raise InputError unless the value is one of the choices.

    Example:
        >>> check_choice("scale", 3, 2, 4, 8)
        InputError: scale: must be 2, 4 or 8, not 3
    """
    if value not in choices:
        *others, last = map(str, choices)
        raise InputError(f"{name}: must be {', '.join(others)} or {last}, not {value}")
