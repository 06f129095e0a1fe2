"""What a client is told in place of images, in the shape that OpenAI's clients read. No torch."""

import difflib
from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError

from gear_dist.errors import one_line

_MOST_CHARACTERS = 600


class RequestError(Exception):
    """A request that is answered with a status and a reason."""

    def __init__(
        self, status: int, message: str, *, field: str = "", headers: dict[str, str] | None = None
    ) -> None:
        """Args: field: the field that is at fault, where it is one."""
        super().__init__(message)
        self.status = status
        self.field = field
        self.headers = headers or {}

    def body(self) -> dict[str, Any]:
        """What the answer holds."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        if self.status == 429:
            kind = "rate_limit_error"
        message = one_line(str(self))[:_MOST_CHARACTERS]
        return {
            "error": {"message": message, "type": kind, "param": self.field or None, "code": None}
        }


def explain(error: ValidationError, fields: Iterable[str]) -> RequestError:
    """The first of pydantic's complaints, as a 400."""
    first = error.errors(include_url=False, include_context=False)[0]
    field = str(first["loc"][0]) if first["loc"] else ""  # what follows names a kind of value
    if first["type"] == "json_invalid":
        return RequestError(400, f"the body is not JSON: {first['msg']}")
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(field, list(fields), 1)
        hint = f"did you mean {near[0]}?" if near else f"use {', '.join(sorted(fields))}"
        return RequestError(400, f"{field}: there is no such field; {hint}", field=field)
    if not field:
        return RequestError(400, f"the body: {first['msg']}")
    value = repr(first.get("input"))[:60]
    said = first["msg"][0].lower() + first["msg"][1:]
    return RequestError(400, f"{field}={value}: {said}", field=field)
