"""HTML and SVG elements that escape whatever is not markup already."""

import html
from typing import Any


class Markup(str):
    """Text that is HTML already; plain `str` children are escaped."""


def element(name: str, /, *children: Any, **attributes: Any) -> Markup:
    """An element: `element("a", "x < y", href="#top", class_="link")`.

    Children that are None are left out, lists are flattened, all but Markup is escaped. An
    attribute's trailing underscore goes, other underscores become hyphens; None leaves it out.
    """
    pairs = [
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    ]
    body = join(*children)
    if not body and name in _VOID:
        return Markup(f"<{name}{''.join(pairs)}>")
    return Markup(f"<{name}{''.join(pairs)}>{body}</{name}>")


def join(*children: Any) -> Markup:
    """Children one after the other."""
    parts = []
    for child in children:
        if isinstance(child, list | tuple):
            parts.append(join(*child))
        elif isinstance(child, Markup):
            parts.append(child)
        elif child is not None:
            parts.append(Markup(html.escape(str(child))))
    return Markup("".join(parts))


_VOID = frozenset({"img", "meta", "br", "hr"})
