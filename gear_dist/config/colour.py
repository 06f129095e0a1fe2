"""Colours in settings: a name, #rrggbb, or three numbers."""

import contextlib
from functools import lru_cache

from PIL import ImageColor

Colour = tuple[int, int, int]
"""Red, green, blue, 0 to 255."""
WHITE: Colour = (255, 255, 255)


@lru_cache
def parse_colour(text: str) -> Colour:
    """The colour of `white`, `#ffffff` or `255,255,255`.

    Raises:
        ValueError: no such colour; the message says what is allowed.
    """
    numbers = [word.strip() for word in text.split(",")]
    if len(numbers) == 3 and all(n.isascii() and n.isdigit() and len(n) < 4 for n in numbers):
        red, green, blue = map(int, numbers)
        if max(red, green, blue) < 256:
            return red, green, blue
    elif "(" not in text and len(text) < 100:
        with contextlib.suppress(ValueError):
            found = ImageColor.getrgb(text)
            if len(found) == 3:
                return found
    raise ValueError("use a colour's name, #rrggbb, or three numbers from 0 to 255: 255,255,255")


def hex_colour(colour: Colour) -> str:
    """#rrggbb."""
    return "#{:02x}{:02x}{:02x}".format(*colour)
