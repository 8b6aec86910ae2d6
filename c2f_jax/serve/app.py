"""The pages and the JSON interface: which path does what, and how a mistake is told."""

import asyncio
import base64
import io
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from c2f_jax.data.pipeline import ImageFile
from c2f_jax.inference.predict import TOP, Model, Prediction
from c2f_jax.program import needing
from c2f_jax.serve import limits
from c2f_jax.serve.batching import Batcher
from c2f_jax.serve.openapi import description
from c2f_jax.serve.reading import Reader, Unreadable, Upload

with needing("serve"):
    import python_multipart  # noqa: F401  (starlette's forms need it)
    from starlette.applications import Starlette
    from starlette.datastructures import UploadFile
    from starlette.exceptions import HTTPException
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import FileResponse, JSONResponse, Response
    from starlette.routing import Route

# Of a request's body that is an image: what curl and Python say where nobody says anything, too.
IMAGES = ("", "application/octet-stream", "application/x-www-form-urlencoded")

WEB = Path(__file__).parent / "web"
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "img-src 'self' data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def make_app(model: Model, reader: Reader, batcher: Batcher, *, hosts: tuple[str, ...], threshold: float | None) -> Any:
    """The ASGI application.

    Args:
        model: what answers.
        reader: reads uploads.
        batcher: runs the model.
        hosts: names in a request's `Host` that are ours; empty: any. A page elsewhere whose name was made to lead here
            (DNS rebinding) has another.
        threshold: of the probability below which an image is marked as none of the classes; None: none is marked.
    """
    slots = asyncio.Semaphore(limits.UPLOADS)

    async def answer(data: bytes, name: str, pictures: bool) -> dict[str, Any]:
        upload = await reader.read(data, preview=pictures)
        try:
            said = await asyncio.wait_for(batcher(upload.image, upload.window), limits.ANSWER_SECONDS)
        except TimeoutError as error:
            raise HTTPException(503, "too busy; try again later", {"Retry-After": "10"}) from error
        row = ImageFile(upload.image, upload.window, upload.height, upload.width, None)
        return _told(model.prediction(name, row, said, threshold, TOP), upload, pictures)

    async def predict(request: Request) -> Response:
        async with _slot(slots):
            uploads = await _uploads(request)
            if len(uploads) != 1:
                raise HTTPException(400, f"{len(uploads)} images were sent; /predict takes one, /predict/batch several")
            try:
                return JSONResponse(await answer(uploads[0][1], uploads[0][0], _wants_pictures(request)))
            except Unreadable as error:
                raise HTTPException(422, f"the image cannot be read: {error}") from error

    async def predict_batch(request: Request) -> Response:
        async with _slot(slots):
            uploads = await _uploads(request)

            async def one(name: str, data: bytes) -> dict[str, Any]:
                try:
                    return await answer(data, name, _wants_pictures(request))
                except Unreadable as error:
                    return {"file": name, "error": f"the image cannot be read: {error}"}

            results = await asyncio.gather(*(one(name, data) for name, data in uploads))
        status = 422 if all("error" in result for result in results) else 200
        return JSONResponse({"results": results}, status)

    async def health(_: Request) -> Response:
        return JSONResponse({"status": "ok", "step": model.step})

    async def about(_: Request) -> Response:
        return JSONResponse(
            {
                "run": model.workdir.name,
                "method": model.config.method,
                "step": model.step,
                "views": list(model.views),
                "classes": list(model.class_names),
            }
        )

    async def openapi(_: Request) -> Response:
        return JSONResponse(description(model.views, model.config.method))

    def page(name: str) -> Callable[[Request], Awaitable[Response]]:
        async def send(_: Request) -> Response:
            return FileResponse(WEB / name)

        return send

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        running = asyncio.create_task(batcher.run())
        yield
        running.cancel()

    routes = [
        Route("/", page("index.html")),
        Route("/page.css", page("page.css")),
        Route("/page.js", page("page.js")),
        Route("/predict", predict, methods=["POST"]),
        Route("/predict/batch", predict_batch, methods=["POST"]),
        Route("/healthz", health),
        Route("/model", about),
        Route("/openapi.json", openapi),
    ]
    app = Starlette(routes=routes, lifespan=lifespan, exception_handlers={HTTPException: _refusal, Exception: _failure})
    return _Guard(app, hosts)


class _Guard:
    """Turns away who is not ours before a byte is read, and puts `HEADERS` on every answer."""

    def __init__(self, app: Any, hosts: tuple[str, ...]):
        self._app, self._hosts = app, hosts

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                ours = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message["headers"], *ours]}
            await send(message)

        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        refusal = self._refusal(headers)
        if refusal is not None:
            await JSONResponse({"error": refusal}, 403)(scope, receive, with_headers)
            return
        await self._app(scope, receive, with_headers)

    def _refusal(self, headers: dict[str, str]) -> str | None:
        host = headers.get("host", "")  # HTTP/1.0 need not have one; a browser, which a page can turn against us, does
        if self._hosts and host and _name(host) not in self._hosts:
            return "this address is not the server's own"
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != host:
            return "another site's page may not use this server"
        return None


def _name(host: str) -> str:
    """`host:port` -> host; of IPv6 in its brackets."""
    return (
        host.rpartition(":")[0].lower()
        if host.rpartition("]")[2].startswith(":") or (":" in host and not host.startswith("["))
        else host.lower()
    )


@asynccontextmanager
async def _slot(slots: asyncio.Semaphore) -> AsyncIterator[None]:
    """Holds what an upload takes; waits for it, but not for ever."""
    try:
        await asyncio.wait_for(slots.acquire(), limits.ANSWER_SECONDS)
    except TimeoutError as error:
        raise HTTPException(503, "too busy; try again later", {"Retry-After": "10"}) from error
    try:
        yield
    finally:
        slots.release()


async def _uploads(request: Request) -> list[tuple[str, bytes]]:
    """(name, bytes) of the images in a request: its files, or its body.

    Raises:
        HTTPException: if there is none, more than is taken, or something else.
    """
    length = request.headers.get("content-length", "0")
    if not length.isascii() or not length.isdigit():
        raise HTTPException(400, "Content-Length is not a number")
    if int(length) > limits.MAX_BYTES:
        raise HTTPException(413, _too_many_bytes())
    limited = Request(request.scope, _limited(request.receive))
    try:
        async with asyncio.timeout(limits.UPLOAD_SECONDS):
            kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind in IMAGES or kind.startswith("image/"):
                return [("image", await limited.body())]
            if kind != "multipart/form-data":
                raise HTTPException(415, "send an image file as the body, or a form with files")
            async with limited.form(max_files=limits.MAX_IMAGES, max_fields=8, max_part_size=1 << 16) as form:
                files = [entry for _, entry in form.multi_items() if isinstance(entry, UploadFile)]
                found = [(file.filename or "image", await file.read()) for file in files]
    except TimeoutError as error:
        raise HTTPException(408, f"the upload took longer than {limits.UPLOAD_SECONDS:.0f} s") from error
    except ClientDisconnect as error:  # nobody hears it: no fault of the server, and nothing for its output
        raise HTTPException(400, "the upload ended too soon") from error
    if not found:
        raise HTTPException(400, "the form holds no file; send images as files")
    return found


def _limited(receive: Any) -> Any:
    """`receive`, until more than `MAX_BYTES` have come: a chunked request does not say how many will."""
    left = limits.MAX_BYTES

    async def counted() -> Any:
        nonlocal left
        message = await receive()
        left -= len(message.get("body", b""))
        if left < 0:
            raise HTTPException(413, _too_many_bytes())
        return message

    return counted


def _too_many_bytes() -> str:
    return f"a request may have {limits.MAX_BYTES >> 20} MiB at most"


def _wants_pictures(request: Request) -> bool:
    return request.query_params.get("pictures", "") in ("1", "true")


def _told(prediction: Prediction, upload: Upload, pictures: bool) -> dict[str, Any]:
    """The JSON answer; see `openapi`."""
    found: dict[str, Any] = {
        "file": prediction.file,
        "width": upload.width,
        "height": upload.height,
        "class": prediction.best[0],
        "probability": round(prediction.best[1], 6),
        "views": {
            view: [{"class": name, "probability": round(value, 6)} for name, value in top]
            for view, top in prediction.top.items()
        },
        "box": None,
        "unknown": prediction.unknown,
    }
    if prediction.box is not None:
        names = ("xmin", "ymin", "xmax", "ymax")
        found["box"] = {name: round(value, 2) for name, value in zip(names, prediction.box, strict=True)}
    if pictures:
        heat = None if prediction.attention is None else _uri(_png(prediction.attention), "png")
        found["pictures"] = {"photo": _uri(upload.preview or b"", "jpeg"), "attention": heat}
    return found


def _png(heat: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.round(255 * np.clip(heat, 0, 1)).astype(np.uint8)).save(buffer, "png")
    return buffer.getvalue()


def _uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


async def _refusal(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    if error.status_code in (408, 413):
        headers["Connection"] = "close"  # what is still to come is not read
    return JSONResponse({"error": error.detail}, error.status_code, headers)


async def _failure(_: Request, error: Exception) -> Response:
    return JSONResponse({"error": "the model failed; see the server's output"}, 500)
