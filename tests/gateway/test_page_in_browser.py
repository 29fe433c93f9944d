"""Protects the page as people meet it, in a real browser over a real server with scripted engines."""

import json
import os
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from playwright.sync_api import Browser, Dialog, Page, expect, sync_playwright

from tests.gateway.conftest import END, FakeEngine, make_served
from tuneserve.gateway import Agreement, ServedModel, Settings, Step, add_key
from tuneserve.gateway._app import application
from tuneserve.gateway._connection import Connection
from tuneserve.gateway._keys import Limits
from tuneserve.gateway._state import Gateway

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here; apt-get install chromium")
HOSTILE = """# Title <img src=x onerror="alert(1)">
<script>alert(2)</script> and **bold *nested***, `a < b`, [good](https://example.com/a) [bad](javascript:alert(3))

![picture](https://example.com/track.png)

1. one
   - inner
2. two

| a | b |
| --- | --- |
| 1 | <b>2</b> |

```html
<script>alert(4)</script>
```
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        # Chromium's sandbox refuses to run as root.
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """Return a page that has to stay without errors and without a request to anywhere else."""
    context = browser.new_context(viewport={"width": 1100, "height": 800})
    page = context.new_page()
    troubles: list[str] = []
    elsewhere: list[str] = []

    def refuse(dialog: Dialog) -> None:
        troubles.append(f"a dialog: {dialog.message}")
        dialog.dismiss()

    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("console", lambda said: troubles.append(said.text) if "Content Security Policy" in said.text else None)
    page.on("dialog", refuse)
    page.on("request", lambda sent: None if "//127.0.0.1:" in sent.url else elsewhere.append(sent.url))
    yield page
    context.close()
    assert not troubles
    assert not [url for url in elsewhere if not url.startswith("blob:")]


@contextmanager
def serving(*models: ServedModel, settings: Settings | None = None) -> Iterator[str]:
    gateway = Gateway(settings or Settings())
    gateway.open(*models)
    config = uvicorn.Config(application(gateway), http=Connection, lifespan="off", log_config=None, log_level="error")
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            for model in models:
                engine_of(model).release()
            server.should_exit = True
            thread.join()


def engine_of(served: ServedModel) -> FakeEngine:
    assert isinstance(served.engine, FakeEngine)
    return served.engine


def answering(directory: Path, name: str, answer: str, **options: Any) -> ServedModel:
    served = replace(make_served(directory, context_length=4096, **options), name=name)
    engine_of(served).answer = served.tokenizer.encode(answer + END, add_special_tokens=False)
    return served


def ask(page: Page, text: str) -> None:
    page.get_by_label("Message", exact=True).fill(text)
    page.get_by_label("Message", exact=True).press("Enter")


def test_what_a_model_writes_is_shown_and_never_run(page: Page, tokenizer_dir: Path) -> None:
    with serving(answering(tokenizer_dir, "tuned", HOSTILE)) as url:
        page.goto(url)
        ask(page, "<b>Hi</b>")
        answer = page.locator(".message.assistant .body")
        expect(page.get_by_role("button", name="Retry")).to_be_visible()
        expect(page.locator(".message.user .body")).to_have_text("<b>Hi</b>")
        expect(answer.locator("h3")).to_have_text('Title <img src=x onerror="alert(1)">')
        expect(answer).to_contain_text("<script>alert(2)</script>")
        expect(answer.locator("strong em")).to_have_text("nested")
        expect(answer.locator("pre code")).to_have_text("<script>alert(4)</script>")
        expect(answer.locator("ol > li > ul > li")).to_have_text("inner")
        expect(answer.locator("td").nth(1)).to_have_text("<b>2</b>")
        assert answer.locator("img, script, b, iframe").count() == 0
        links = answer.locator("a").evaluate_all("links => links.map((link) => [link.href, link.rel])")
        assert all(href.startswith("https://example.com/") and "noopener" in rel for href, rel in links), links
        assert ["https://example.com/a", "noopener noreferrer nofollow"] in links


def test_a_conversation_is_stopped_edited_retried_kept_and_exported(page: Page, tokenizer_dir: Path) -> None:
    served = answering(tokenizer_dir, "tuned", "Hello there", hold_after=5)
    engine = engine_of(served)
    with serving(served) as url:
        page.goto(url)
        page.get_by_text("System prompt and sampling").click()
        page.get_by_label("System prompt").first.fill("Be brief.")
        page.get_by_label("Temperature").first.fill("0.5")
        page.get_by_label("Seed").fill("7")
        ask(page, "It's a question")
        answer = page.locator(".message.assistant .body")
        expect(answer).to_have_text("Hello")
        page.get_by_role("button", name="Stop").click()
        expect(page.locator("#status")).to_have_text("Stopped.")
        assert engine.has_cancelled.acquire(timeout=10), "the server was not told"
        assert engine.requests[-1].params.temperature == 0.5
        assert engine.requests[-1].params.seed == 7
        engine.hold_after = None
        page.get_by_role("button", name="Retry").click()
        expect(answer).to_have_text("Hello there")
        expect(page.locator(".message.assistant .actions")).to_contain_text("tokens/s")
        page.get_by_role("button", name="Edit").click()
        page.get_by_label("Edit your message").fill("Another")
        page.get_by_label("Edit your message").press("Enter")
        expect(page.locator(".message.user .body")).to_have_text("Another")
        expect(answer).to_have_text("Hello there")
        assert "Be brief." in served.tokenizer.decode(engine.prompt)
        assert "question" not in served.tokenizer.decode(engine.prompt)
        page.reload()
        page.get_by_role("button", name="Another").click()
        expect(answer).to_have_text("Hello there")
        page.get_by_role("button", name="Export").click()
        line = page.locator("#curl").input_value()
        assert line.startswith(f"curl '{url}/v1/chat/completions' -H 'Content-Type: application/json' -d '")
        body = json.loads(line.partition(" -d '")[2].removesuffix("'").replace("'\\''", "'"))
        assert body == {
            "model": "tuned", "temperature": 0.5, "seed": 7,
            "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Another"}],
        }  # fmt: skip
        with page.expect_download() as downloading:
            page.get_by_role("button", name="Download JSON").click()
        kept = json.loads(Path(downloading.value.path()).read_text())
        assert [message["content"] for message in kept["messages"]] == ["Another", "Hello there"]
        page.get_by_role("button", name="Close").click()
        page.get_by_role("button", name="Delete").click()
        expect(page.locator("#conversations li")).to_have_count(0)


def test_a_failed_request_says_why_and_can_be_retried(page: Page, tokenizer_dir: Path) -> None:
    served = answering(tokenizer_dir, "tuned", "Hello", fail_after=0)
    with serving(served) as url:
        page.goto(url)
        ask(page, "Hi")
        expect(page.locator("#status")).to_contain_text("The engine failed")
        engine_of(served).fail_after = None
        page.get_by_role("button", name="Retry").click()
        expect(page.locator(".message.assistant .body")).to_have_text("Hello")


def test_models_are_compared_token_by_token(page: Page, tokenizer_dir: Path) -> None:
    base, tuned = answering(tokenizer_dir, "base", "Helium"), answering(tokenizer_dir, "tuned", "Hello wörld")
    with serving(base, tuned) as url:
        page.goto(f"{url}/#compare")
        page.get_by_label("Prompt", exact=True).fill("Say")
        page.get_by_role("button", name="Compare").click()
        verdict = page.get_by_role("region", name="Where they part")
        expect(verdict).to_contain_text(
            "base and tuned part after 3 characters: base goes on with “i” (36.8%, to tuned"
        )
        expect(verdict.locator("tbody td")).to_have_text(["1.000"] * 4)
        columns = page.locator(".tokens")
        expect(columns.nth(0)).to_have_text("Helium")
        expect(columns.nth(0).locator(".part")).to_have_text("i")
        expect(columns.nth(1).locator(".part")).to_have_text("l")
        assert columns.nth(0).locator(".token.s1").count() == 6
        # Each was asked for the other's answer, as its own prompt goes on with it.
        scored = engine_of(base).requests[-1]
        assert base.tokenizer.decode(scored.prompt_ids).endswith("assistant\nHello wörld")
        assert scored.params.prompt_logprobs == 5
        page.get_by_label("Colour by surprise to").select_option("tuned")
        columns.nth(0).focus()
        columns.nth(0).press("ArrowRight")
        expect(page.locator("#token-detail")).to_contain_text(
            "Token 1, “H”: 36.8% to tuned. Likeliest there: “I” 60.7%"
        )


def test_answers_part_at_the_right_token_where_letters_take_several(page: Page, tokenizer_dir: Path) -> None:
    base, tuned = answering(tokenizer_dir, "base", "ö😀 one"), answering(tokenizer_dir, "tuned", "ö😀 two")
    with serving(base, tuned) as url:
        page.goto(f"{url}/#compare")
        page.get_by_role("button", name="Compare").click()
        verdict = page.get_by_role("region", name="Where they part")
        expect(verdict).to_contain_text("part after 3 characters: base goes on with “o” (36.8%, to tuned 36.8%)")
        expect(page.locator(".tokens .part")).to_have_text(["o", "t"])
        page.get_by_label("Colour by surprise to").select_option("tuned")
        expect(page.locator(".tokens .part")).to_have_text(["o", "t"])


def test_a_conversation_deleted_while_it_is_answered_is_gone(page: Page, tokenizer_dir: Path) -> None:
    with serving(answering(tokenizer_dir, "tuned", "Hello there", hold_after=5)) as url:
        page.goto(url)
        ask(page, "Hi")
        expect(page.locator(".message.assistant .body")).to_have_text("Hello")
        page.get_by_role("button", name="Delete").click()
        expect(page.locator(".message")).to_have_count(0)
        ask(page, "Again")
        expect(page.locator("#conversations li")).to_have_text(["Again"])


def test_what_a_model_cannot_score_is_told(page: Page, tokenizer_dir: Path) -> None:
    base, tuned = answering(tokenizer_dir, "base", "A"), answering(tokenizer_dir, "tuned", "B")
    engine_of(base).lacks = ("prompt_logprobs",)
    with serving(base, tuned) as url:
        page.goto(f"{url}/#compare")
        page.get_by_role("button", name="Compare").click()
        expect(page.locator(".column").nth(1)).to_contain_text("base cannot say")
        expect(page.get_by_role("region", name="Where they part")).to_contain_text("part at the first token")


def test_live_shows_each_engine(page: Page, tokenizer_dir: Path) -> None:
    base, tuned = answering(tokenizer_dir, "base", "A"), answering(tokenizer_dir, "tuned", "B")
    with serving(base, tuned) as url:
        page.goto(url)
        page.get_by_label("Model", exact=True).first.select_option("tuned")
        ask(page, "Hi")
        expect(page.get_by_role("button", name="Retry")).to_be_visible()
        engine_of(base).ready = False
        page.get_by_role("tab", name="Live").click()
        card = page.get_by_role("region", name="tuned")
        expect(card).to_contain_text("ready")
        numbers = card.locator(".numbers > div")
        expect(numbers.filter(has_text="Running")).to_have_text("Running3")
        expect(numbers.filter(has_text="Waiting")).to_have_text("Waiting2")
        expect(numbers.filter(has_text="Cache in use")).to_contain_text("25%")
        expect(numbers.filter(has_text="Tokens written")).to_have_text("Tokens written2")
        expect(card.get_by_role("row").filter(has_text="First token").locator("td").first).to_contain_text("ms")
        expect(page.get_by_role("region", name="base")).to_contain_text("not running")


def test_a_model_shows_how_it_came_to_be(page: Page, tokenizer_dir: Path) -> None:
    parity = Agreement(kl=2.6e-4, top1=0.995, positions=800)
    steps = (
        Step(kind="base", name="org/base"),
        Step(kind="adapter", name="<i>tickets</i>"),
        Step(kind="method", name="merged_16bit", facts={"by": "tuneserve 1"}, parity=parity),
        Step(kind="engine", name="fake"),
    )
    with serving(replace(answering(tokenizer_dir, "tuned", "A"), lineage=steps)) as url:
        page.goto(f"{url}/#model")
        card = page.get_by_role("region", name="tuned")
        expect(card.locator(".step strong")).to_have_text(["org/base", "<i>tickets</i>", "merged_16bit", "fake"])
        expect(card.locator(".hop")).to_have_text(["KL 2.6e-4top-1 99.5%", "not checked"])


def test_the_page_works_with_a_key_and_by_keyboard(page: Page, tokenizer_dir: Path, tmp_path: Path) -> None:
    key = add_key(tmp_path / "keys.toml", "alice", Limits())
    with serving(answering(tokenizer_dir, "tuned", "Hello"), settings=Settings(api_keys=tmp_path / "keys.toml")) as url:
        page.goto(url)
        expect(page.get_by_label("This server wants an API key")).to_be_focused()
        page.keyboard.type("wrong")
        page.keyboard.press("Enter")
        expect(page.locator("#notice")).to_contain_text("key")
        page.get_by_label("This server wants an API key").fill(key)
        page.keyboard.press("Enter")
        expect(page.get_by_label("Message", exact=True)).to_be_focused()
        page.keyboard.type("Hi")
        page.keyboard.press("Enter")
        expect(page.locator(".message.assistant .body")).to_have_text("Hello")
        page.get_by_role("button", name="Export").click()
        curl = page.locator("#curl").input_value()
        assert key not in curl
        assert '-H "Authorization: Bearer $TUNESERVE_API_KEY"' in curl
        page.keyboard.press("Escape")
        page.get_by_role("tab", name="Chat").focus()
        for name in ("Compare", "Live", "Model", "Chat"):
            page.keyboard.press("ArrowRight")
            expect(page.get_by_role("tab", name=name)).to_be_focused()
            expect(page.get_by_role("tabpanel", name=name)).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("view", ["chat", "compare", "live", "model"])
def test_text_can_be_read_and_nothing_is_cut_off(browser: Browser, tokenizer_dir: Path, view: str, scheme: str) -> None:
    with (
        serving(answering(tokenizer_dir, "tuned", "Hello")) as url,
        browser.new_context(color_scheme=scheme, viewport={"width": 360, "height": 640}) as context,  # type: ignore[arg-type]
    ):
        page = context.new_page()
        page.goto(f"{url}/#{view}")
        expect(page.get_by_role("tabpanel")).to_be_visible()
        # As WCAG computes it: https://www.w3.org/TR/WCAG22/#dfn-contrast-ratio
        ratio = page.evaluate(
            """() => {
              const light = (colour) => {
                const [r, g, b] = colour.match(/[\\d.]+/g).map((part) => part / 255)
                  .map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
                return 0.2126 * r + 0.7152 * g + 0.0722 * b;
              };
              const style = getComputedStyle(document.body);
              const [low, high] = [light(style.color), light(style.backgroundColor)].sort((a, b) => a - b);
              return (high + 0.05) / (low + 0.05);
            }"""
        )
        assert ratio > 7
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "it scrolls sideways on a phone"
