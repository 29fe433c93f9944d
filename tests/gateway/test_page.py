"""Protects the chat page and the API's: complete in themselves, and fenced in by their headers."""

import re

import httpx
import pytest

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("path", "files"),
    [("/", ["chat.js", "style.css"]), ("/docs", ["/", "docs.js", "openapi.json", "style.css"])],
)
async def test_the_page_loads_only_itself(client: httpx.AsyncClient, path: str, files: list[str]) -> None:
    page = await client.get(path)
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'")
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert page.headers["x-content-type-options"] == "nosniff"
    links = re.findall(r'(?:href|src)="([^"]+)"', page.text)
    assert sorted(links) == files
    for link in links:
        assert (await client.get(f"/{link.lstrip('/')}")).status_code == 200
    assert not re.search(r"<script>|<style| style=| on\w+=", page.text)


@pytest.mark.parametrize("path", ["/", "/docs"])
async def test_every_control_has_a_name(client: httpx.AsyncClient, path: str) -> None:
    page = (await client.get(path)).text
    for control in re.findall(r'<(?:input|textarea) id="([^"]+)"', page):
        labelled = f'for="{control}"' in page or re.search(
            rf'<label[^>]*>[^<]+<(?:input|textarea) id="{control}"', page
        )
        assert labelled, control


@pytest.mark.parametrize(("path", "script_path"), [("/", "/chat.js"), ("/docs", "/docs.js")])
async def test_the_script_writes_text_only(client: httpx.AsyncClient, path: str, script_path: str) -> None:
    script = (await client.get(script_path)).text
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval|https?://", script)
    page = (await client.get(path)).text
    for name in re.findall(r'byId\("([^"]+)"\)', script):
        assert f'id="{name}"' in page, name
