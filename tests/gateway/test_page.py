"""Protects the page and the API's: complete in themselves, and fenced in by their headers."""

import re
from importlib.resources import files

import httpx
import pytest

from tuneserve.gateway._page import PAGE_PATHS

pytestmark = pytest.mark.anyio
SCRIPTS = [path for path in PAGE_PATHS if path.endswith(".js")]


@pytest.mark.parametrize(
    ("path", "linked"),
    [
        ("/", ["docs", "page/app.js", "page/icon.svg", "page/style.css"]),
        ("/docs", ["/", "openapi.json", "page/docs.js", "page/icon.svg", "page/style.css"]),
    ],
)
async def test_the_page_loads_only_itself(client: httpx.AsyncClient, path: str, linked: list[str]) -> None:
    page = await client.get(path)
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'")
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert page.headers["x-content-type-options"] == "nosniff"
    links = re.findall(r'(?:href|src)="([^"]+)"', page.text)
    assert sorted(links) == linked
    for link in links:
        assert (await client.get(f"/{link.lstrip('/')}")).status_code == 200
    assert not re.search(r"<script>|<style| style=| on\w+=", page.text)


def test_every_file_of_the_page_is_served() -> None:
    names = {each.name for each in (files("tuneserve.gateway") / "page").iterdir()}
    assert names == {path.rpartition("/")[2] for path in PAGE_PATHS} - {"", "docs"} | {"index.html", "docs.html"}


@pytest.mark.parametrize("path", ["/", "/docs"])
async def test_every_control_has_a_name(client: httpx.AsyncClient, path: str) -> None:
    page = (await client.get(path)).text
    controls = re.findall(r'<(?:input|textarea|select) id="([^"]+)"', page)
    assert controls
    for control in controls:
        labelled = f'for="{control}"' in page or re.search(
            rf'<label[^>]*>[^<]+<(?:input|textarea|select) id="{control}"', page
        )
        assert labelled, control


@pytest.mark.parametrize("path", SCRIPTS)
async def test_a_script_writes_text_only(client: httpx.AsyncClient, path: str) -> None:
    script = (await client.get(path)).text
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", script)
    assert not re.search(r"https?://[a-z]", script.replace("http://www.w3.org/2000/svg", ""))
    for imported in re.findall(r'from "\./([^"]+)"', script):
        assert f"/page/{imported}" in SCRIPTS
    page = (await client.get("/docs" if path == "/page/docs.js" else "/")).text
    for name in re.findall(r'byId\("([^"]+)"\)', script):
        assert f'id="{name}"' in page, name
