"""The server's routes over a `Service`."""

import asyncio
import importlib.resources
import time
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from gear_dist.serving.errors import RequestError
from gear_dist.serving.metrics import CONTENT_TYPE
from gear_dist.serving.requests import (
    GenerationRequest,
    ReconstructionRequest,
    json_schema,
    read_body,
)
from gear_dist.serving.service import Service

_MAX_JSON_BYTES = 256 << 10
"""Of a request without a picture."""
_BODY_S = 60.0
"""Given to a body to arrive."""
_PAGE_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
}
_PAGE_HEADERS = {
    # The page takes nothing from elsewhere, and nothing else may show it in a frame.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}

Answer = Callable[[Request], Awaitable[dict[str, Any]]]


def build_app(service: Service) -> FastAPI:
    """The routes of one replica."""
    app = FastAPI(
        title="gear-dist",
        description="Images of a jointly trained tokenizer and generator.",
        docs_url=None,  # those pages fetch scripts from elsewhere
        redoc_url=None,
    )
    app.add_exception_handler(RequestError, _answer_error)
    app.add_exception_handler(HTTPException, _answer_http_error)
    app.add_exception_handler(Exception, _answer_unexpected)

    @app.post(
        "/v1/images/generations",
        summary="Images of a class or prompt",
        openapi_extra={"requestBody": json_schema(GenerationRequest)},
    )
    async def generate(request: Request) -> Response:
        async def answer(request: Request) -> dict[str, Any]:
            body = await read_json(request, _MAX_JSON_BYTES)
            return await service.generate(read_body(GenerationRequest, body))

        return await _counted(service, request, answer)

    @app.post(
        "/v1/reconstruct",
        summary="A picture through the tokenizer and back; the body is its file, or JSON",
        openapi_extra={"requestBody": json_schema(ReconstructionRequest)},
    )
    async def reconstruct(request: Request) -> Response:
        async def answer(request: Request) -> dict[str, Any]:
            with service.picture_slot():
                return await service.reconstruct(await _read_picture(request, service))

        return await _counted(service, request, answer)

    @app.get("/v1/models", summary="What may be asked for")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [service.describe()]}

    @app.head("/healthz", include_in_schema=False)
    @app.get("/healthz", summary="Whether the model is loaded")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/metrics", summary="Numbers of this replica for Prometheus")
    async def metrics() -> Response:
        return Response(service.metrics.page(), media_type=CONTENT_TYPE)

    for path, (name, kind) in _PAGE_FILES.items():
        route = _file_route(name, kind)
        app.add_api_route(path, route, methods=["GET", "HEAD"], include_in_schema=False)
    return app


def _file_route(name: str, kind: str) -> Callable[[], Awaitable[Response]]:
    content = importlib.resources.files("gear_dist.serving").joinpath("page", name).read_bytes()

    async def send() -> Response:
        return Response(content, media_type=kind, headers=_PAGE_HEADERS)

    return send


async def _counted(service: Service, request: Request, answer: Answer) -> Response:
    start, status = time.monotonic(), 500
    try:
        body = await answer(request)
        status = 200
        return JSONResponse(body)
    except RequestError as error:
        status = error.status
        raise
    except asyncio.CancelledError:
        status = 0
        service.metrics.count_abandoned()
        raise
    finally:
        if status:
            service.metrics.count_request(request.url.path, status, time.monotonic() - start)


async def read_json(request: Request, most: int) -> bytes:
    """A body that says it is JSON.

    A web page of another origin can send other types without the browser asking us first.

    Raises:
        RequestError: it is of another type, or too large.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise RequestError(415, f"Content-Type {kind or 'is missing'}: use application/json")
    return await read_bytes(request, most)


async def read_bytes(request: Request, most: int) -> bytes:
    """A body of at most so many bytes.

    Raises:
        RequestError: it is larger, or does not arrive.
    """
    too_large = RequestError(413, f"the body is larger than {most:,} bytes")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and len(length) < 20 and int(length) > most:
        raise too_large
    data = bytearray()
    try:
        async with asyncio.timeout(_BODY_S):
            async for chunk in request.stream():
                data += chunk
                if len(data) > most:
                    raise too_large
    except TimeoutError:
        raise RequestError(408, f"the body did not arrive within {_BODY_S:g} s") from None
    return bytes(data)


async def _read_picture(request: Request, service: Service) -> bytes:
    most = service.settings.max_body_bytes
    if request.headers.get("content-type", "").lower().startswith("image/"):
        return await read_bytes(request, most)
    return read_body(ReconstructionRequest, await read_json(request, most)).read_image()


async def _answer_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return JSONResponse(error.body(), error.status, error.headers)


async def _answer_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}"
    headers = dict(error.headers) if error.headers else None
    return JSONResponse(RequestError(error.status_code, message).body(), error.status_code, headers)


async def _answer_unexpected(request: Request, error: Exception) -> Response:
    # Its text may tell of this machine; the replica's log has it.
    return JSONResponse(
        RequestError(500, "an error of the server's; its log says more").body(), 500
    )
