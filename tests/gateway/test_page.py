"""Protects the chat page: complete in itself, and fenced in by its headers."""

import re

import httpx
import pytest

pytestmark = pytest.mark.anyio


async def test_the_page_loads_only_itself(client: httpx.AsyncClient) -> None:
    page = await client.get("/")
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'")
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert page.headers["x-content-type-options"] == "nosniff"
    links = re.findall(r'(?:href|src)="([^"]+)"', page.text)
    assert sorted(links) == ["chat.js", "style.css"]
    for link in links:
        assert (await client.get(f"/{link}")).status_code == 200
    assert not re.search(r"<script>|<style| style=| on\w+=", page.text)


async def test_every_control_has_a_name(client: httpx.AsyncClient) -> None:
    page = (await client.get("/")).text
    for control in re.findall(r'<(?:input|textarea) id="([^"]+)"', page):
        labelled = f'for="{control}"' in page or re.search(
            rf'<label[^>]*>[^<]+<(?:input|textarea) id="{control}"', page
        )
        assert labelled, control


async def test_the_script_writes_text_only(client: httpx.AsyncClient) -> None:
    script = (await client.get("/chat.js")).text
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval|https?://", script)
    page = (await client.get("/")).text
    for name in re.findall(r'byId\("([^"]+)"\)', script):
        assert f'id="{name}"' in page, name
