"""Run-time options as the command line (text), the panel and scripts (numbers, truth values) give them; no torch."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ..errors import ConfigError

ON, OFF = ("on", "true", "yes", "1"), ("off", "false", "no", "0")


def switch_option(options: Mapping[str, Any], name: str, default: bool) -> bool:
    """An option that is on or off.

    Raises:
        ConfigError: it is neither.
    """
    value = options.get(name, default)
    word = str(value).lower()
    if word not in (*ON, *OFF):
        raise ConfigError(
            f"The option {name} is “{value}”, neither on nor off.", f"Use {' or '.join(ON)}; {' or '.join(OFF)}."
        )
    return word in ON


def number_option(options: Mapping[str, Any], name: str, default: float, remedy: str = "Correct it.") -> float:
    """An option that is a number.

    Raises:
        ConfigError: it is none.
    """
    value = options.get(name, default)
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ConfigError(f"The option {name} is “{value}”, not a number.", remedy)
    return number


def whole_option(options: Mapping[str, Any], name: str, default: int, least: int | None = None) -> int:
    """An option that is a whole number.

    Args:
        least: the smallest that is valid.

    Raises:
        ConfigError: it is none, or too small.
    """
    value = options.get(name, default)
    try:
        number = float(value)
        if number.is_integer():
            if least is not None and number < least:
                raise ConfigError(f"The option {name} is “{value}”, which is too small.", f"Use {least} or more.")
            return int(number)
    except (TypeError, ValueError, OverflowError):
        pass
    raise ConfigError(f"The option {name} is “{value}”, not a whole number of {name}.", "Correct it.")


def choice_option(
    options: Mapping[str, Any], name: str, choices: Sequence[str], default: str, unlisted: Collection[str] = ()
) -> str:
    """An option that is one of a few words, in small letters.

    Args:
        default: where the option is not given; need not be one of them.
        unlisted: words that are understood, but not offered.

    Raises:
        ConfigError: it is another.
    """
    if name not in options:
        return default
    word = str(options[name]).lower()
    if word not in (*choices, *unlisted):
        what = name.replace("_", " ")
        raise ConfigError(f"There is no {what} “{options[name]}”.", f"Use {', '.join(choices)}.")
    return word
