"""Colours of layers: an ordered scale that people with any colour vision can follow, light or dark around it.

The scale is *viridis* (Nathaniel Smith and Stéfan van der Walt, CC0), without its darkest end, which a dark
page would swallow.  The newest layer is the brightest, the base the darkest.
"""

from __future__ import annotations

from typing import Final

Rgb = tuple[int, int, int]

_VIRIDIS: Final = bytes.fromhex(
    "482878 453781 3e4a89 375a8c 31688e 2b758e 26828e 21908d"
    "1f9e89 28ae80 3fbc73 5ec962 84d44b addc30 d8e219 fde725"
)
_STEPS: Final = len(_VIRIDIS) // 3
DAMAGED_COLOUR: Final[Rgb] = (0xE0, 0x2C, 0x6D)
# Reads as zeros: neutral, on a light and on a dark page.
NEUTRAL_LIGHT: Final = "#e4e7eb"
NEUTRAL_DARK: Final = "#23292f"


def layer_colours(count: int) -> list[Rgb]:
    """A colour for each of ``count`` layers, leaf first."""
    if count == 1:
        return [_at(0.45)]
    return [_at(0.95 - 0.95 * layer / (count - 1)) for layer in range(count)]


def hexadecimal_colour(colour: Rgb) -> str:
    """``#3e4a89``."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


def _at(place: float) -> Rgb:
    """The scale at ``place``, 0 the dark end and 1 the bright one."""
    position = place * (_STEPS - 1)
    index = min(int(position), _STEPS - 2)
    part = position - index
    low, high = (_VIRIDIS[3 * i : 3 * i + 3] for i in (index, index + 1))
    red, green, blue = (round(a + (b - a) * part) for a, b in zip(low, high))
    return red, green, blue
