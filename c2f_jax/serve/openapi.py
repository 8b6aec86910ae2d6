"""What `/openapi.json` says of the interface."""

from collections.abc import Sequence
from typing import Any

import c2f_jax
from c2f_jax.serve import limits


def description(views: Sequence[str], method: str) -> dict[str, Any]:
    """OpenAPI 3.1."""
    error = _json({"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}})
    refusals = {
        "400": ("no image, or a form that is none",),
        "403": ("a request of another site's page",),
        "408": (f"an upload of more than {limits.UPLOAD_SECONDS:.0f} s",),
        "413": (f"a request of more than {limits.MAX_BYTES >> 20} MiB",),
        "415": ("neither an image nor a form",),
        "422": (
            "an image that cannot be read: damaged, of no known format, of more than "
            f"{limits.MAX_PIXELS // 10**6} million pixels, or of more than {limits.READ_SECONDS:.0f} s to decode",
        ),
        "503": ("too many requests at the same time",),
    }
    responses = {code: {"description": words, "content": error} for code, (words,) in refusals.items()}
    pictures = {
        "name": "pictures",
        "in": "query",
        "description": "also the photo, upright and small, and the attention over it, as data URIs",
        "schema": {"type": "boolean", "default": False},
    }
    binary = {"schema": {"type": "string", "format": "binary"}}

    def form(name: str, schema: dict[str, Any]) -> dict[str, Any]:
        return {"schema": {"type": "object", "required": [name], "properties": {name: schema}}}

    file = {"type": "string", "format": "binary"}
    several = {"type": "array", "items": file, "maxItems": limits.MAX_IMAGES}
    prediction = {"$ref": "#/components/schemas/Prediction"}
    results = {
        "type": "object",
        "required": ["results"],
        "properties": {
            "results": {"type": "array", "items": {"anyOf": [prediction, {"$ref": "#/components/schemas/Unread"}]}}
        },
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": f"c2f-jax: a {method} model", "version": c2f_jax.__version__},
        "paths": {
            "/predict": {
                "post": {
                    "operationId": "predict",
                    "summary": "What the model sees in an image",
                    "parameters": [pictures],
                    "requestBody": {
                        "required": True,
                        "description": "the image file itself, or a form with one file",
                        "content": {
                            "image/*": binary,
                            "application/octet-stream": binary,
                            "multipart/form-data": form("image", file),
                        },
                    },
                    "responses": {"200": {"description": "the prediction", "content": _json(prediction)}, **responses},
                }
            },
            "/predict/batch": {
                "post": {
                    "operationId": "predictBatch",
                    "summary": "What the model sees in several images, in their order; 422 if none can be read",
                    "parameters": [pictures],
                    "requestBody": {"required": True, "content": {"multipart/form-data": form("images", several)}},
                    "responses": {"200": {"description": "a result for each", "content": _json(results)}, **responses},
                }
            },
            "/healthz": {"get": _get("health", "Answers while the server does", {"status": _TEXT, "step": _INT})},
            "/model": {
                "get": _get(
                    "model",
                    "Which run it is",
                    {
                        "run": _TEXT,
                        "method": _TEXT,
                        "step": _INT,
                        "views": {"type": "array", "items": {"enum": list(views)}},
                        "classes": {"type": "array", "items": _TEXT},
                    },
                )
            },
        },
        "components": {"schemas": {"Prediction": _prediction(views), "Unread": _UNREAD}},
    }


_TEXT, _INT, _NUMBER = {"type": "string"}, {"type": "integer"}, {"type": "number"}
_UNREAD = {"type": "object", "required": ["file", "error"], "properties": {"file": _TEXT, "error": _TEXT}}


def _prediction(views: Sequence[str]) -> dict[str, Any]:
    likely = {
        "type": "array",
        "description": "the likeliest classes, the first one first",
        "items": {
            "type": "object",
            "required": ["class", "probability"],
            "properties": {"class": _TEXT, "probability": {"type": "number", "minimum": 0, "maximum": 1}},
        },
    }
    sides = {name: _NUMBER for name in ("xmin", "ymin", "xmax", "ymax")}
    uri = {"type": ["string", "null"], "format": "uri"}
    return {
        "type": "object",
        "required": ["file", "width", "height", "class", "probability", "views", "box", "unknown"],
        "properties": {
            "file": _TEXT,
            "width": {"type": "integer", "description": "pixels, turned upright"},
            "height": {"type": "integer"},
            "class": {"type": "string", "description": "the answer"},
            "probability": _NUMBER,
            "views": {"type": "object", "properties": {view: likely for view in views}},
            "box": {
                "type": ["object", "null"],
                "description": "where the second look looked, in pixels; null after one look",
                "required": list(sides),
                "properties": sides,
            },
            "unknown": {
                "type": ["boolean", "null"],
                "description": "whether it is none of the classes; null unless the server was started with --unknown",
            },
            "pictures": {"type": "object", "properties": {"photo": uri, "attention": uri}},
        },
    }


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _get(name: str, summary: str, properties: dict[str, Any]) -> dict[str, Any]:
    schema = {"type": "object", "required": list(properties), "properties": properties}
    return {
        "operationId": name,
        "summary": summary,
        "responses": {"200": {"description": "it", "content": _json(schema)}},
    }
