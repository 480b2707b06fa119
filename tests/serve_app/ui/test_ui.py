"""The web chat in a real browser, against the real server; screenshots are kept."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from serve_app.config.app_args import REPOSITORY
from tests.serve_app.tasks import served as models_of

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
SCREENSHOTS = Path(os.environ.get("SCREENSHOTS") or REPOSITORY / "artifacts" / "screenshots")
IMAGES = REPOSITORY / "demo" / "images"
TIMEOUT_MS = 60_000
# The demo model never comes to the end of this word.
ENDLESS = "Spell aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa."

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium: apt-get install chromium, or set CHROMIUM to its path"
)
expect.set_options(timeout=TIMEOUT_MS)


class Chat:
    """The page, as a user uses it."""

    def __init__(self, page: Page, address: str) -> None:
        self.page = page
        self.elsewhere: list[str] = []
        self.broken: list[str] = []
        page.set_default_timeout(TIMEOUT_MS)
        page.on("request", lambda request: self._note(request.url, address))
        page.on("pageerror", lambda error: self.broken.append(str(error)))
        page.on("dialog", lambda dialog: self.broken.append(dialog.message))
        page.goto(f"{address}/ui/")
        self.log = page.get_by_role("log")
        self.message = page.get_by_placeholder("Write a message")
        expect(page.get_by_role("combobox", name="Model")).to_have_value("demo")

    def _note(self, url: str, address: str) -> None:
        if not url.startswith((address, "data:", "blob:")):
            self.elsewhere.append(url)

    def send(self, text: str) -> None:
        self.message.fill(text)
        self.message.press("Enter")

    def ask(self, text: str) -> None:
        """Send, and wait for the whole answer: the facts stand under it then."""
        facts = self.log.get_by_text(re.compile(r"seed \d+ · \d+ \+ \d+ tokens · fp_"))
        answers = facts.count()
        self.send(text)
        expect(facts).to_have_count(answers + 1)

    def button(self, name: str) -> Any:
        return self.page.get_by_role("button", name=name)

    def choose(self, model: str, variant: str) -> None:
        """Type a model's name, and wait until the page shows its first variant."""
        field = self.page.get_by_role("combobox", name="Model")
        field.fill(model)
        field.press("Enter")
        expect(self.page.get_by_role("combobox", name="Variant")).to_have_value(variant)

    def greedy(self) -> None:
        self.page.get_by_role("slider", name="Temperature").fill("0")

    def screenshot(self, name: str) -> None:
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=SCREENSHOTS / f"{name}.png")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    # Of the module only: while it is there, no other test of this process can have an event loop.
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def served(address: str) -> str:
    """The address, once the page is served: the server reports that it is ready before that."""
    _wait_for(lambda: httpx.get(f"{address}/ui/", timeout=60).status_code == 200)
    return address


@pytest.fixture
def open_chat(browser: Browser, served: str) -> Iterator[Callable[..., Chat]]:
    opened: list[Chat] = []

    def open_one(width: int = 1200, height: int = 860) -> Chat:
        page = browser.new_page(viewport={"width": width, "height": height})
        opened.append(Chat(page, served))
        return opened[-1]

    yield open_one
    for chat in opened:
        assert chat.elsewhere == [], "the page needs another host"
        assert chat.broken == []
        chat.page.close()


def _wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.1)


def _tasks(address: str) -> Any:
    """What the unquantized model's replica counts."""
    with httpx.Client(base_url=address) as client:
        (replica,) = models_of(client)[0]["replicas"]
    return replica["tasks"]


def test_an_answer_that_is_run_again_has_the_same_bytes(open_chat: Callable[..., Chat]) -> None:
    chat = open_chat()
    expect(chat.button("Run again and compare")).to_be_disabled()
    chat.ask("Tell me about yourself.")  # sampled, with a seed that the server draws
    facts = re.search(r"seed (\d+) · 16 \+ \d+ tokens · fp_\w+", chat.log.inner_text())
    assert facts, chat.log.inner_text()
    expect(chat.page.get_by_role("textbox", name="Seed")).to_have_value(facts[1])
    chat.button("Run again and compare").click()
    text = chat.log.get_by_role("paragraph").nth(1).inner_text()
    expect(chat.log).to_contain_text(
        f"Run again with seed {facts[1]}: the same {len(text.encode())} bytes."
    )
    chat.screenshot("run-again")


def test_images_and_earlier_turns(open_chat: Callable[..., Chat]) -> None:
    chat = open_chat()
    chat.greedy()
    chat.page.locator("input[type=file]").set_input_files(
        [IMAGES / "red_circle.png", IMAGES / "blue_star.png"]
    )
    expect(chat.page.get_by_role("button", name="Remove file")).to_have_count(2)
    chat.ask("What is in these images?")
    expect(chat.log).to_contain_text("The first image shows a red circle, the second a blue star.")
    for image in ("red_circle.png", "blue_star.png"):
        expect(chat.log.locator(f'img[src$="/{image}"]')).to_be_visible()
    chat.screenshot("two-images")
    chat.button("New chat").click()
    expect(chat.log).not_to_contain_text("red circle")
    chat.ask("My name is Ada.")
    chat.ask("What is my name?")
    expect(chat.log).to_contain_text("Your name is Ada.")


def test_stopping_frees_the_server(open_chat: Callable[..., Chat], served: str) -> None:
    chat, before = open_chat(), _tasks(served)
    chat.greedy()
    chat.page.get_by_role("textbox", name="Max tokens").fill("1900")
    chat.send(ENDLESS)
    expect(chat.log).to_contain_text("aaaaaaaa" * 5)  # it comes in pieces, long before its end
    chat.button("Stop").click()
    expect(chat.log).to_contain_text("stopped by you")
    chat.screenshot("stopped")
    _wait_for(lambda: _tasks(served)["cancelled"] == before["cancelled"] + 1)
    expect(chat.button("Run again and compare")).to_be_disabled()


def test_closing_the_page_frees_the_server(open_chat: Callable[..., Chat], served: str) -> None:
    before = _tasks(served)
    for _ in range(3):  # on a busy machine an answer may end before the server hears of it
        chat = open_chat()
        chat.greedy()
        chat.page.get_by_role("textbox", name="Max tokens").fill("1900")
        chat.send(ENDLESS)
        expect(chat.log).to_contain_text("aaaaaaaa")
        chat.page.close()
        _wait_for(lambda: _tasks(served)["ongoing"] == 0)
        if _tasks(served)["cancelled"] > before["cancelled"]:
            return
    pytest.fail("no answer was cancelled")


def test_another_variant_of_the_model(open_chat: Callable[..., Chat]) -> None:
    chat = open_chat()
    chat.ask("What is 7 + 8?")
    chat.page.get_by_role("combobox", name="Variant").click()
    chat.page.get_by_role("option", name="float32, INT8").click()
    chat.ask("What is 7 + 8?")
    fingerprints = re.findall(r"fp_\w+", chat.log.inner_text())
    assert len(set(fingerprints)) == 2
    chat.screenshot("another-variant")


def test_errors_are_the_servers_messages(open_chat: Callable[..., Chat], served: str) -> None:
    chat = open_chat()
    tokens = chat.page.get_by_role("textbox", name="Max tokens")
    tokens.fill("9999")
    chat.send("Count from 3 to 9.")
    refused = httpx.post(
        f"{served}/v1/chat/completions",
        json={
            "model": "demo",
            "messages": [{"role": "user", "content": "Count from 3 to 9."}],
            "max_tokens": 9999,
        },
    )
    expect(chat.log).to_contain_text(refused.json()["error"]["message"])
    expect(chat.message).to_have_value("Count from 3 to 9.")
    chat.screenshot("error")
    tokens.fill("many")
    chat.message.press("Enter")
    expect(chat.page.get_by_text("Max tokens must be a whole number, or empty.")).to_be_visible()
    tokens.fill("")
    chat.choose("no/such-model", "the model's own dtype")
    chat.send("Count from 3 to 9.")
    expect(chat.log).to_contain_text("no/such-model")
    expect(chat.message).to_have_value("Count from 3 to 9.")
    chat.choose("demo", "float32")
    chat.greedy()
    chat.message.press("Enter")
    expect(chat.log).to_contain_text("3, 4, 5, 6, 7, 8, 9.")
    expect(chat.log).not_to_contain_text("Error")


def test_a_phone(open_chat: Callable[..., Chat]) -> None:
    chat = open_chat(width=390, height=844)
    chat.ask("Repeat: <b>moon</b> <img src=x onerror=alert(1)> <script>alert(2)</script>")
    expect(chat.log).to_contain_text("<b>moon</b> <img src=x onerror=alert(1)> <script>")
    chat.screenshot("phone")
    for control in (chat.message, chat.button("Stop"), chat.button("Run again and compare")):
        expect(control).to_be_in_viewport()
    wide = chat.page.evaluate("document.documentElement.scrollWidth")
    assert wide <= 390, "it must be scrolled sideways"
    nameless = re.findall(
        r"- (?:button|textbox|combobox|slider|spinbutton|checkbox)(?: \[|:|$).*",
        chat.page.locator("body").aria_snapshot(),
        re.MULTILINE,
    )
    assert nameless == []


def test_only_uploads_are_images(served: str) -> None:
    """A handmade message that names a file of the server."""
    config = httpx.get(f"{served}/ui/config", timeout=60).json()
    names = {component["id"]: component["props"].get("label") for component in config["components"]}
    (send,) = [
        each for each in config["dependencies"] if "Message" in map(names.get, each["inputs"])
    ]
    values: dict[Any, Any] = {
        "Message": {"text": "", "files": [{"path": str(IMAGES / "red_circle.png")}]},
        "Model": "demo",
        "Variant": "the model's own dtype",
        "Temperature": 1,
        "Top p": 1,
        "New seed each time": True,
    }
    values["Message"]["files"][0]["meta"] = {"_type": "gradio.FileData"}
    join = {
        "data": [values.get(names[each], "") for each in send["inputs"]],
        "fn_index": send["id"],
        "session_hash": "intruder",
    }
    prefix = f"{served}/ui/gradio_api/queue"
    assert httpx.post(f"{prefix}/join", json=join, timeout=60).status_code == 200
    heard = []
    with httpx.stream("GET", f"{prefix}/data?session_hash=intruder", timeout=60) as stream:
        for line in stream.iter_lines():
            if line.startswith("data: "):
                heard.append(json.loads(line.removeprefix("data: ")))
                if heard[-1]["msg"] == "process_completed":
                    break
    assert heard[-1]["success"] is False
    assert "was not uploaded by a user" in json.dumps(heard[-1])
