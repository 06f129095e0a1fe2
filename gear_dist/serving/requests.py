"""Bodies of requests, in the shape that OpenAI's clients send. No torch.

Source: the public reference of OpenAI's images API, for the names of its fields.
"""

import base64
import binascii
import dataclasses
import re
import secrets
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictInt,
    StrictStr,
    ValidationError,
    model_validator,
)

from gear_dist.config.models import GeneratorConfig, SamplingConfig
from gear_dist.errors import ConfigError
from gear_dist.inference.decoding.guidance import check_sampling
from gear_dist.inference.seeds import MAX_SAMPLE_SEED
from gear_dist.serving.errors import RequestError, explain

SAMPLING_FIELDS = (
    "guidance",
    "guidance_schedule",
    "guidance_start",
    "guidance_end",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
)
"""Settings of sampling that may differ from request to request."""
_NEW_SEED_BITS = 32
"""Of a seed that the server draws: JavaScript's numbers keep it whole."""

_SEED = re.compile(r"[0-9]{1,20}")
"""Longer texts of digits are slow to read."""

Body = TypeVar("Body", bound=BaseModel)
Number = Annotated[float, Field(allow_inf_nan=False)]


class GenerationRequest(BaseModel):
    """POST /v1/images/generations."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _leave_out_nulls(cls, body: Any) -> Any:
        """Clients send null for what they leave to the server."""
        if isinstance(body, dict):
            return {name: value for name, value in body.items() if value is not None}
        return body

    prompt: StrictStr | StrictInt
    """A class's name or index; of a text-to-image model, what the image shows."""
    n: Annotated[StrictInt, Field(ge=1)] = 1
    """Images."""
    size: StrictStr = "auto"
    """The model's, "256x256", or auto; nothing is resized."""
    seed: StrictInt | StrictStr | None = None
    """Of the first image, from which the others' are derived, as `gear-dist sample --seed`; also as
    digits in a string, because JavaScript's numbers have 53 bits. Without it one is drawn."""
    response_format: Literal["b64_json"] = "b64_json"
    output_format: Literal["png"] = "png"

    guidance: Number | None = None
    """This and the next: settings of sampling."""
    guidance_schedule: Literal["constant", "interval", "linear", "cosine"] | None = None
    guidance_start: Number | None = None
    guidance_end: Number | None = None
    temperature: Number | None = None
    top_k: StrictInt | None = None
    top_p: Number | None = None
    min_p: Number | None = None

    model: StrictStr | None = None
    """This and the next: sent by clients, and without effect here."""
    user: StrictStr | None = None
    quality: StrictStr | None = None
    style: StrictStr | None = None
    background: Literal["auto", "opaque"] | None = None
    moderation: StrictStr | None = None
    output_compression: StrictInt | None = None
    stream: Literal[False] | None = None

    def read_seed(self) -> int:
        """The seed, or a new one.

        Raises:
            RequestError: it is no whole number of 64 bits.
        """
        if self.seed is None:
            return secrets.randbits(_NEW_SEED_BITS)
        text = str(self.seed)
        # Python refuses to read thousands of digits.
        if not (_SEED.fullmatch(text) and int(text) <= MAX_SAMPLE_SEED):
            raise RequestError(
                400,
                f"seed={text[:40]}: is not a whole number from 0 to {MAX_SAMPLE_SEED} (64 bits)",
                field="seed",
            )
        return int(text)

    def read_sampling(
        self, default: SamplingConfig, generator: GeneratorConfig, num_codes: int
    ) -> SamplingConfig:
        """The server's settings with the request's in their place.

        Raises:
            RequestError: an impossible value, or one that this generator cannot follow.
        """
        values = {name: getattr(self, name) for name in SAMPLING_FIELDS}
        changes = {name: value for name, value in values.items() if value is not None}
        try:
            sampling = dataclasses.replace(default, **changes)
            check_sampling(sampling, generator, num_codes)
        except ConfigError as error:
            message = str(error).replace("sampling.", "")
            named = [name for name in changes if message.startswith(f"{name}=")]
            raise RequestError(400, message, field=(named or [""])[0]) from None
        return sampling


class ReconstructionRequest(BaseModel):
    """POST /v1/reconstruct, where the body is not the picture itself."""

    model_config = ConfigDict(extra="forbid")

    image: StrictStr
    """The picture's file in base64, or a data: URL of it."""

    def read_image(self) -> bytes:
        """The file.

        Raises:
            RequestError: it is no base64.
        """
        text = self.image
        if text.startswith("data:"):
            head, comma, text = text.partition(",")
            if not comma or not head.endswith(";base64"):
                raise RequestError(400, "image: a data: URL must hold base64", field="image")
        try:
            return base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            raise RequestError(
                400, "image: is not base64 of a picture's file", field="image"
            ) from None


def read_body(kind: type[Body], data: bytes) -> Body:
    """A body of a kind.

    Raises:
        RequestError: it is no JSON, or does not fit.
    """
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        raise explain(error, kind.model_fields) from None


def json_schema(kind: type[BaseModel]) -> dict[str, Any]:
    """What the OpenAPI page says of a body that is read by hand."""
    return {"content": {"application/json": {"schema": kind.model_json_schema()}}, "required": True}
