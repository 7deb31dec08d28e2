"""A real browser for tests of pages: Debian's Chromium without a window, driven by selenium."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PATIENCE = 20.0
"""Seconds to wait for what should be there at once, on a machine that others use too."""
FLAGS = ("--headless=new", "--disable-gpu", "--hide-scrollbars", "--disable-dev-shm-usage", "--no-first-run")


def why_no_browser() -> str | None:
    """Why pages cannot be tried here; None if they can."""
    missing = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    if missing:
        return f"{' and '.join(missing)} not found (on Debian: apt-get install chromium chromium-driver)"
    try:
        import selenium  # noqa: F401
    except ImportError:
        return "selenium is not installed"
    return None


class Browser:
    """A browser with one page at a time.

    Attributes:
        driver: selenium's.
    """

    def __init__(self) -> None:
        from selenium.webdriver import Chrome, ChromeOptions, ChromeService

        options = ChromeOptions()
        options.binary_location = shutil.which("chromium") or ""
        root = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        for flag in (*FLAGS, *root):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = Chrome(options=options, service=ChromeService(shutil.which("chromedriver")))

    def open(self, page: Path, *, width: int = 1280, height: int = 900, scheme: str = "light") -> None:
        """Open a page from disk in a window of this size, on a system with this ``prefers-color-scheme``; its console
        begins anew."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        self.driver.get("about:blank")
        self.console()
        self.driver.get(page.resolve().as_uri())
        failed = self.driver.execute_async_script(
            "const done = arguments[0]; fastmcPage.ready.then(() => done(null), (e) => done(String(e.stack)))"
        )
        assert failed is None, failed
        self.run("document.documentElement.style.scrollBehavior = 'auto'; localStorage.clear()")

    def run(self, script: str, *arguments: Any) -> Any:
        """What a script gives; ``arguments[0]`` is the first of them."""
        return self.driver.execute_script(script, *arguments)

    def find(self, selector: str, within: Any = None) -> Any:
        return (within or self.driver).find_element("css selector", selector)

    def find_all(self, selector: str, within: Any = None) -> list[Any]:
        return (within or self.driver).find_elements("css selector", selector)

    def console(self) -> list[str]:
        """Warnings and errors on the console since it was asked last."""
        return [f"{entry['level']}: {entry['message']}" for entry in self.driver.get_log("browser")]

    def press(self, *keys: str) -> None:
        """Keys to what has the focus."""
        from selenium.webdriver import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()

    def mouse(self, element: Any, x: float, y: float, *, click: bool = False, drag_to: float | None = None) -> None:
        """Scroll to an element and move the mouse to its pixel (x, y); click, or drag across to ``drag_to``."""
        from selenium.webdriver import ActionChains

        self.run("arguments[0].scrollIntoView({block: 'center'})", element)
        size = element.size
        actions = ActionChains(self.driver, duration=20)
        actions.move_to_element_with_offset(element, round(x - size["width"] / 2), round(y - size["height"] / 2))
        if drag_to is not None:
            actions.click_and_hold().move_by_offset(round((drag_to - x) / 2), 0).move_by_offset(
                round((drag_to - x) / 2), 0
            ).release()
        elif click:
            actions.click()
        actions.perform()

    def close(self) -> None:
        self.driver.quit()


def soon(condition: Callable[[], Any], patience: float = PATIENCE) -> Any:
    """What ``condition`` gives as soon as it is true; what it gives at last if it never is."""
    end = time.monotonic() + patience
    while not (found := condition()) and time.monotonic() < end:
        time.sleep(0.03)
    return found
