"""A headless Chromium, and servers of the demo in processes of their own."""

import contextlib
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
OPTIONS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
)
WAIT = 30_000  # milliseconds


def skip_without_a_browser():
    """One line says what is missing."""
    missing = [name for name in ("gradio", "playwright") if importlib.util.find_spec(name) is None]
    if not any(map(shutil.which, NAMES)):
        missing.append("Chromium (apt-get install chromium)")
    if missing:
        pytest.skip(f"the tests in a browser need {' and '.join(missing)}", allow_module_level=True)


@contextlib.contextmanager
def chromium():
    """A browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path = next(filter(None, map(shutil.which, NAMES)))
        browser = playwright.chromium.launch(executable_path=path, args=list(OPTIONS))
        yield browser
        browser.close()


class Demo:
    """The page of `scratch-gpt demo`."""

    def __init__(self, log, *options):
        self.log = log
        environment = os.environ | {
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")]),
        }
        command = [sys.executable, "-m", "train.demo", "--port", "0", *map(str, options)]
        with log.open("w") as file:
            self.process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)

    @property
    def url(self):
        """Its address, as soon as it is ready."""
        deadline = time.monotonic() + 120
        while not (found := re.search(r"is at (http://\S+)", self.log.read_text())):
            is_alive = self.process.poll() is None and time.monotonic() < deadline
            assert is_alive, f"the demo does not start: {self.log.read_text()}"
            time.sleep(0.1)
        return found[1].rstrip("/")

    def stop(self):
        """Press Ctrl-C, and return the exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(30)

    def close(self):
        self.process.kill()
        self.process.wait()


class Visitor:
    """A page in the browser, with what went wrong in it."""

    def __init__(self, context, url):
        self.page = context.new_page()
        self.page.set_default_timeout(WAIT)
        self.problems, self.requests = [], []
        self.page.on("console", lambda entry: entry.type == "error" and self.problems.append(entry.text))
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(url)
        self.page.wait_for_selector("#write-go")

    def tab(self, name):
        """Open a tab, which may be in the menu of those that have no room."""
        button = self.page.get_by_role("tab", name=name, exact=True)
        if button.is_visible():
            button.click()
        else:
            self.page.locator(".overflow-menu > button").click()
            self.page.locator(".overflow-dropdown button", has_text=name).click()
        self.page.wait_for_selector(f"#{name.lower()}-go, #training-slider >> visible=true")

    def fill(self, element, text):
        self.page.locator(f"#{element} textarea, #{element} input").first.fill(text)

    def click(self, selector, number=0):
        self.page.locator(selector).nth(number).click()

    def text(self, selector):
        return self.page.locator(selector).first.inner_text()

    def texts(self, selector):
        return self.page.locator(selector).all_inner_texts()

    def wait(self, selector, text):
        """Wait until an element contains a text."""
        self.page.locator(selector, has_text=text).first.wait_for()

    def slider(self, name, value):
        """Type the value of the visible slider with this name."""
        box = self.page.locator(f".sg-{name} input[type=number] >> visible=true")
        box.fill(str(value))
        box.press("Tab")

    def close(self):
        self.page.close()
