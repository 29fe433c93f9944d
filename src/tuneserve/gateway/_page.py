"""The page at ``/`` and the page of the API: their files, and headers that let a browser load nothing else."""

from importlib.resources import files

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

_SCRIPTS = (
    "api", "app", "chat", "compare", "docs", "dom", "live", "markdown", "model", "prometheus", "scores", "store",
)  # fmt: skip
_FILES = {
    "/": ("index.html", "text/html"),
    "/docs": ("docs.html", "text/html"),
    "/page/style.css": ("style.css", "text/css"),
    "/page/icon.svg": ("icon.svg", "image/svg+xml"),
    **{f"/page/{name}.js": (f"{name}.js", "text/javascript") for name in _SCRIPTS},
}
PAGE_PATHS = tuple(_FILES)
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


def add_page(app: FastAPI) -> None:
    """Serve the page at ``/`` and the API's at ``/docs``."""
    folder = files("tuneserve.gateway") / "page"
    for path, (name, media_type) in _FILES.items():
        _add_file(app, path, (folder / name).read_bytes(), media_type)


def _add_file(app: FastAPI, path: str, content: bytes, media_type: str) -> None:
    async def file(_: Request) -> Response:
        return Response(content, headers=_HEADERS, media_type=media_type)

    app.add_route(path, file)
