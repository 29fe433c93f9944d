"""Take the pictures of the page in docs/screenshots from a running server: ``python scripts/page_screenshots.py URL``.

The pictures in the repository are of the demo's three models, served with the check of parity; see docs/page.md.
"""

import os
import shutil
import sys
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

OUT = Path(__file__).parents[1] / "docs" / "screenshots"
PATIENCE_MILLISECONDS = 180_000
QUESTION = "Write a bulleted list of three fruits and, below, a Python function that adds two numbers."
LOADED_SECONDS = 14


def chat(page: Page) -> None:
    """Ask the base something that shows Markdown."""
    page.get_by_label("Model", exact=True).first.select_option("base")
    page.get_by_text("System prompt and sampling").click()
    page.get_by_label("Temperature").first.fill("0")
    page.get_by_label("Max tokens").first.fill("160")
    page.get_by_text("System prompt and sampling").click()
    page.get_by_label("Message", exact=True).fill(QUESTION)
    page.get_by_label("Message", exact=True).press("Enter")
    page.get_by_role("button", name="Retry").wait_for()
    page.screenshot(path=OUT / f"chat-{scheme_of(page)}.png")


def compare(page: Page) -> None:
    """Compare all three, coloured by how surprising the base finds them."""
    page.get_by_role("tab", name="Compare").click()
    page.get_by_role("button", name="Compare").click()
    page.locator("#verdict table").wait_for()
    page.get_by_label("Colour by surprise to").select_option("base")
    page.locator(".tokens").first.press("ArrowRight")
    page.locator(".tokens").first.press("ArrowRight")
    page.screenshot(path=OUT / f"compare-{scheme_of(page)}.png", full_page=True)


def live(page: Page) -> None:
    """Show the load while each model writes a few answers."""
    page.evaluate(
        """() => {
          for (const [model, n] of [["base", 3], ["tickets", 2], ["tickets-unmerged", 1]]) {
            const body = JSON.stringify({ model, n, prompt: "One, two,", max_tokens: 2000, ignore_eos: true });
            fetch("v1/completions", { method: "POST", body });
          }
        }"""
    )
    page.get_by_role("tab", name="Live").click()
    page.wait_for_timeout(1000 * LOADED_SECONDS)
    running = page.locator("#live-engines dt", has_text="Running").locator("xpath=following-sibling::dd")
    if "0" in running.all_inner_texts():
        raise SystemExit(f"the load ended within {LOADED_SECONDS} seconds; give it more max_tokens.")
    page.screenshot(path=OUT / f"live-{scheme_of(page)}.png", full_page=True)


def model(page: Page) -> None:
    """Show where the models come from."""
    page.get_by_role("tab", name="Model").click()
    page.locator(".lineage").first.wait_for()
    page.screenshot(path=OUT / f"model-{scheme_of(page)}.png", full_page=True)


def scheme_of(page: Page) -> str:
    """Return light or dark."""
    return "dark" if page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches") else "light"


def main(url: str) -> None:
    """Take all pictures of both colour schemes."""
    OUT.mkdir(exist_ok=True)
    program = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=program, args=arguments)
        for light in (True, False):
            context = browser.new_context(
                color_scheme="light" if light else "dark", viewport={"width": 1120, "height": 760}
            )
            page = context.new_page()
            page.set_default_timeout(PATIENCE_MILLISECONDS)
            page.goto(url)
            page.get_by_text("Ready.").wait_for()
            for view in (chat, compare, live, model):
                view(page)
            context.close()
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1])
