"""Pictures of a page as a reader sees it: python -m tests.page_shots report.html --out docs/figures.

NAME-light.png and NAME-dark.png are of a desktop, NAME-phone.png of a phone; with --sections there is one of each
section besides. NAME is that of the file, or --name.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from tests.chromium import Browser, why_no_browser

DESKTOP, PHONE = (1280, 900), (400, 800)
SETTLE = 0.6  # seconds for what moves to be on its way


def shot(browser: Browser, path: Path, above: str | None = None) -> None:
    """A picture of the window, which begins a little above an element."""
    if above is not None:
        script = "scrollTo(0, document.querySelector(arguments[0]).getBoundingClientRect().top + scrollY - 64)"
        browser.run(script, above)
    time.sleep(SETTLE)
    browser.driver.save_screenshot(str(path))
    print(path)


def point_at_a_dot(browser: Browser) -> None:
    """On the first map: so that neighbours stand beneath."""
    maps: Any = browser.find_all(".map")
    if maps:
        browser.run("arguments[0].focus({preventScroll: true})", maps[0])
        browser.press("\ue014", "\ue007")  # an arrow, and Enter


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="folder of the pictures")
    parser.add_argument("--name", help="first part of their names")
    parser.add_argument("--sections", action="store_true", help="also each section, light")
    options = parser.parse_args()
    if reason := why_no_browser():
        parser.error(reason)
    name = options.name or options.page.stem
    options.out.mkdir(parents=True, exist_ok=True)
    browser = Browser()
    try:
        for scheme in ("light", "dark"):
            browser.open(options.page, width=DESKTOP[0], height=DESKTOP[1], scheme=scheme)
            shot(browser, options.out / f"{name}-{scheme}.png")
        browser.open(options.page, width=PHONE[0], height=PHONE[1])
        shot(browser, options.out / f"{name}-phone.png")
        if options.sections:
            browser.open(options.page, width=DESKTOP[0], height=DESKTOP[1])
            point_at_a_dot(browser)
            for section in [each.get_attribute("data-section") for each in browser.find_all("section")]:
                shot(browser, options.out / f"{name}-{section}.png", f"#{section}")
    finally:
        browser.close()


if __name__ == "__main__":
    main()
