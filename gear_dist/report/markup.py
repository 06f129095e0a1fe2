"""SVG elements, built where they are drawn: text is escaped. Pages are templates."""

from typing import Any

from markupsafe import Markup, escape


def element(name: str, /, *children: Any, **attributes: Any) -> Markup:
    """An element: `element("text", "x < y", x=8, class_="title")`.

    Children that are None are left out, lists are flattened, all but Markup is escaped. An
    attribute's trailing underscore goes, other underscores become hyphens; None leaves it out.
    """
    pairs = [
        f' {key.rstrip("_").replace("_", "-")}="{escape(value)}"'
        for key, value in attributes.items()
        if value is not None
    ]
    return Markup(f"<{name}{''.join(pairs)}>{join(*children)}</{name}>")


def join(*children: Any) -> Markup:
    """Children one after the other."""
    parts = [
        join(*child) if isinstance(child, list | tuple) else child
        for child in children
        if child is not None
    ]
    return Markup().join(parts)
