"""The page of a store in a browser: clips play and are filtered, bars and draws answer, names stay text."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from bodies import performed
from chromium import Browser, soon, why_no_browser
from once import made_once
from test_page_browser import ENTER, ESCAPE, EVIL, RUNS_IF_MARKUP, STYLED
from test_page_browser import browser as browser  # a fixture

from fastmc.data.store import PackedStore, StoreWriter
from fastmc.page.document import write_page
from fastmc.page.store import store_content
from fastmc.page.views import Augmentation
from fastmc.skeleton import NTU25
from fastmc.views.draw import AugmentConfig

pytestmark = [
    pytest.mark.program,
    pytest.mark.skipif(why_no_browser() is not None, reason=f"no browser: {why_no_browser()}"),
]
ARROW_UP = "\ue013"
"""A key, as WebDriver numbers it."""
SECTIONS = ["header", "findings", "clips", "counts", "lengths", "skipped", "views"]
CLASSES = ("drink", "wave", "clap", "raise")


def store_of_people(path: Path, classes: tuple[str, ...], name: str = "clip", change: float = 1.0) -> PackedStore:
    """Forty clips of some classes; every eighth has two bodies; the first class has twice as many as the others."""
    with StoreWriter(
        path, name=classes[0], skeleton=NTU25, fps=30.0, class_names=classes,
        protocols={"xsub": {"field": "subject", "train": [1, 3]}, "xview": {"field": "camera", "train": [2]}},
    ) as writer:  # fmt: skip
        for n in range(40):
            label = max(n % (len(classes) + 1) - 1, 0)
            clip = change * performed(1 + label, subject=1 + n % 4)[: 30 + n]
            bodies = np.stack([clip, clip + (0.8, 0, 0)], axis=1) if n % 8 == 7 else clip[:, None]
            writer.add(bodies, name=f"{name}{n:02}", label=label, subject=1 + n % 4, camera=1 + n % 3)
        writer.skip(f"{name} a", "malformed file", f"raw/{name}.skeleton, line 5: 'abc' is no number")
        writer.skip(f"{name} b", "malformed file", f"raw/{name}.skeleton, line 9: the file ends")
        writer.skip(f"{name} c", classes[0], "")
    return PackedStore.open(path)


STORES = {
    "people": lambda at: store_of_people(at, CLASSES),
    "hostile": lambda at: store_of_people(at, (EVIL, STYLED, RUNS_IF_MARKUP), f"{EVIL}{STYLED}{RUNS_IF_MARKUP}"),
    "millimetres": lambda at: store_of_people(at, CLASSES, change=1000.0),
}


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> Path:
    """A folder of the pages, each beside its content."""

    def make(folder: Path) -> None:
        for name, made in STORES.items():
            views = Augmentation(AugmentConfig(crop_frames_min=10), frames=24, clips=3, draws=4)
            content = store_content(made(folder / name), clips=100, augmentation=views)
            title = EVIL if name == "hostile" else name
            content |= {"kind": "store", "title": title, "made": "2026-11-29 08:00", "by": f"fastmc, {title}"}
            write_page(folder / f"{name}.html", content)
            (folder / f"{name}.json").write_text(json.dumps(content))

    return made_once(tmp_path_factory, "look-pages", make)


class Page:
    """An open page of a store, and its content."""

    def __init__(self, browser: Browser, folder: Path, name: str = "people", **window) -> None:
        self.browser = browser
        self.content = json.loads((folder / f"{name}.json").read_text())
        browser.open(folder / f"{name}.html", **window)

    def text(self, selector: str) -> str:
        return self.browser.run("return document.querySelector(arguments[0]).textContent", selector)

    def cards(self) -> list[int]:
        """The clips in the grid, by the names beneath them."""
        names = [each.text for each in self.browser.find_all("#clips .clip .name") if each.is_displayed()]
        return [self.content["clips"]["name"].index(name) for name in names]

    def found(self) -> str:
        return self.text("#clips [role=status]")

    def choose(self, label: str, option: str) -> None:
        script = """
            const [label, option] = arguments;
            const of = [...document.querySelectorAll('#clips label')].find((l) => l.firstChild.textContent === label);
            const select = of.querySelector('select');
            select.value = [...select.options].find((o) => o.textContent === option).value;
            select.dispatchEvent(new Event('change'));
        """
        self.browser.run(script, label, option)

    def press_bar(self, chart: str, n: int) -> None:
        """Click the n-th bar of a chart, near its root."""
        across = chart != "lengths"
        script = """
            const chart = fastmcPage.charts[arguments[0]];
            const at = chart.convertToPixel({seriesIndex: 0}, arguments[1]);
            chart.getDom().scrollIntoView({block: 'center'});
            return [chart.getDom(), at];
        """
        host, (x, y) = self.browser.run(script, chart, [0, n] if across else [n, 0])
        self.browser.mouse(host, x + 3 * across, y - 3 * (not across), click=True)

    def parameters(self, view: str) -> dict[str, str]:
        """What is said of a view: its changes in this draw."""
        rows = self.browser.find_all(f"[data-view={view}] .changes .there")
        return {self.browser.find("dt", row).text: self.browser.find("dd", row).text for row in rows}


@pytest.mark.parametrize(
    "window", [{}, {"scheme": "dark"}, {"width": 390, "height": 800}], ids=["light", "dark", "phone"]
)
@pytest.mark.parametrize("name", STORES)
def test_it_opens_from_disk_and_says_nothing_on_the_console(browser, pages, name, window):
    Page(browser, pages, name, **window)
    assert browser.console() == []
    assert [each.get_attribute("data-section") for each in browser.find_all("[data-section]")] == SECTIONS
    assert browser.run("return performance.getEntriesByType('resource').length") == 0, "it loads something"
    assert browser.run("return document.documentElement.scrollWidth <= innerWidth"), "it is wider than the window"
    empty = browser.run("return Object.values(fastmcPage.charts).filter((c) => !c.getWidth() || !c.getHeight()).length")
    assert empty == 0, "a chart has no room"


def test_pointing_at_a_clip_plays_it_and_so_does_the_focus(browser, pages):
    page = Page(browser, pages)
    canvas = browser.find_all("#clips .clip canvas")[2]
    picture = lambda: browser.run("return arguments[0].toDataURL()", canvas)  # noqa: E731
    still = picture()
    assert canvas.get_attribute("data-playing") is None
    assert not soon(lambda: picture() != still, patience=0.4), "it moves although nobody looks at it"
    browser.mouse(canvas, 40, 40)
    assert soon(lambda: canvas.get_attribute("data-playing")) == str(page.cards()[2])
    assert soon(lambda: picture() != still), "it stands still"
    browser.mouse(browser.find("h1"), 3, 3)
    assert soon(lambda: canvas.get_attribute("data-playing") is None)
    browser.run("arguments[0].focus()", canvas)
    assert soon(lambda: canvas.get_attribute("data-playing")) == str(page.cards()[2])
    all_of_them = next(each for each in browser.find_all("#clips button") if each.text == "Play all")
    all_of_them.click()
    assert len(browser.find_all("#clips .clip canvas[data-playing]")) == len(page.cards()) == 12


def test_a_click_enlarges_and_the_keyboard_does_all_of_it(browser, pages):
    page = Page(browser, pages)
    dialog = browser.find("dialog.enlarged")
    canvas = browser.find_all("#clips .clip canvas")[1]
    browser.mouse(canvas, 60, 60, click=True)
    clip = page.cards()[1]
    assert soon(dialog.is_displayed)
    assert browser.find("canvas", dialog).get_attribute("data-playing") == str(clip)
    facts = dict(zip(*(
        [each.text for each in browser.find_all(tag, dialog)] for tag in ("dt", "dd")), strict=True))  # fmt: skip
    clips = page.content["clips"]
    assert facts["name"] == clips["name"][clip] and facts["subject"] == str(clips["subject"][clip])
    assert facts["part under xsub"] == ("test" if clips["test"][clip] else "training")
    assert facts["length"] == f"{clips['seconds'][clip]:.2f} s, {round(30 * clips['seconds'][clip])} frames"
    browser.press(ESCAPE)
    assert not dialog.is_displayed()
    browser.run("arguments[0].focus()", canvas)
    browser.press(ENTER)
    assert soon(dialog.is_displayed)
    next(each for each in browser.find_all("button", dialog) if each.text == "Next →").click()
    assert browser.find("canvas", dialog).get_attribute("data-playing") == str(page.cards()[2])


def test_dragging_turns_all_clips_and_enlarges_none(browser, pages):
    Page(browser, pages)
    canvas = browser.find_all("#clips .clip canvas")[0]
    turn = "return document.querySelectorAll('#clips .clip canvas')[1].player.camera.yaw"
    before = browser.run(turn)
    browser.mouse(canvas, 40, 60, drag_to=90)
    assert browser.run(turn) > before + 0.2
    assert not browser.find("dialog.enlarged").is_displayed()


def test_filters_filter(browser, pages):
    page = Page(browser, pages)
    clips = page.content["clips"]
    assert page.found() == "1 – 12 of 40 clips"
    assert len({clips["class"][i] for i in page.cards()}) == len(CLASSES), "classes are mixed"
    wanted = [i for i in range(40) if clips["class"][i] == 2]
    page.choose("class", CLASSES[2])
    assert page.cards() == wanted and page.found() == f"1 – {len(wanted)} of {len(wanted)} clips"
    select = browser.find("#clips select")
    browser.run("arguments[0].focus()", select)
    before = browser.run("return arguments[0].selectedIndex", select)
    browser.press(ARROW_UP, ARROW_UP)
    assert browser.run("return arguments[0].selectedIndex", select) == before - 2 and page.cards() != wanted
    assert browser.run("return document.activeElement === arguments[0]", select), "the focus stays"
    page.choose("class", CLASSES[2])
    page.choose("subject", "subject 3")
    both = [i for i in wanted if clips["subject"][i] == 3]
    assert page.cards() == both and 0 < len(both) < len(wanted)
    page.choose("subject", "all")
    page.choose("part", "xview: test")
    tests = [i for i in wanted if clips["camera"][i] != 2]
    assert page.cards() == tests and 0 < len(tests) < len(wanted)
    next(each for each in browser.find_all("#clips button") if each.text == "Clear").click()
    assert page.found() == "1 – 12 of 40 clips"
    page.choose("bodies", "2 bodies")
    assert sorted(page.cards()) == [i for i in range(40) if page.content["motion"]["bodies"][i] == 2]
    page.choose("bodies", "all")
    box = browser.find("#clips input[type=search]")
    box.send_keys("CLIP1")
    assert sorted(page.cards()) == list(range(10, 20))
    box.send_keys("nothing")
    assert page.cards() == [] and page.found() == "None of the clips that this page carries is like that."
    assert browser.console() == []


def test_more_clips_are_a_page_further(browser, pages):
    page = Page(browser, pages)
    seen = page.cards()
    back, more = (
        next(each for each in browser.find_all("#clips .pager button") if word in each.text)
        for word in ("Earlier", "More")
    )
    assert not back.is_enabled()
    for _ in range(3):
        more.click()
        seen += page.cards()
    assert sorted(seen) == list(range(40)) and not more.is_enabled()
    back.click()
    assert page.found() == "25 – 36 of 40 clips"


def test_a_bar_shows_its_clips(browser, pages):
    page = Page(browser, pages)
    clips = page.content["clips"]
    page.press_bar("by-class", 1)
    assert soon(lambda: page.cards() == [i for i in range(40) if clips["class"][i] == 1])
    page.press_bar("by-camera", 2)
    cameras = [i for i in range(40) if clips["camera"][i] == 3]
    assert soon(lambda: page.found() == f"1 – 12 of {len(cameras)} clips"), page.found()
    edges, counts = page.content["store"]["lengths"]["edges"], page.content["store"]["lengths"]["counts"]
    n = int(np.argmax(counts))
    page.press_bar("lengths", n)
    of_length = [i for i in range(40) if edges[n] <= round(30 * clips["seconds"][i]) < edges[n + 1]]
    assert soon(lambda: sorted(page.cards()) == of_length) and len(of_length) == counts[n]
    page.press_bar("bodies", 1)
    assert soon(lambda: len(page.cards()) == 5)


def test_bars_are_the_counts_of_training_and_test(browser, pages):
    page = Page(browser, pages)
    data = "return fastmcPage.charts['by-class'].getOption().series.map((each) => each.data)"
    entries = page.content["store"]["by"]["class"]
    for n, name in enumerate(("xsub", "xview")):
        next(each for each in browser.find_all("#counts .segments button") if each.text == name).click()
        tests = [entry[3][n] for entry in entries]
        assert browser.run(data) == [[entry[2] - test for entry, test in zip(entries, tests, strict=True)], tests]
    assert "From 8 (wave) to 16 (drink), 2 times as many." in page.text("#counts")


def test_what_was_left_out_opens(browser, pages):
    page = Page(browser, pages)
    assert page.text("#skipped h2") == "Left out: 3 files"
    group = browser.find("#skipped details")
    detail = browser.find("th + td", group)
    assert not detail.is_displayed()
    browser.find("summary", group).click()
    assert soon(detail.is_displayed)
    assert browser.find("summary", group).text == "2 × malformed file"
    assert detail.text == "raw/clip.skeleton, line 5: 'abc' is no number"


def test_what_looks_wrong_is_said_first(browser, pages):
    page = Page(browser, pages, "millimetres")
    assert page.text("#findings h2") == "What looks wrong"
    assert "bodies are 15" in page.text("#findings .wrong")
    assert "this looks like millimetres; --scale 0.001" in page.text("#findings .wrong")
    page = Page(browser, pages)
    assert page.text("#findings h2") == "Nothing looks wrong" and browser.find_all("#findings .wrong") == []


def test_draw_again_goes_to_the_next_real_draw(browser, pages):
    page = Page(browser, pages)
    again = browser.find("#views button.primary")
    seen = []
    for step in (0, 1, 2, 3, 0):
        assert page.text("#views [role=status]") == f"draw {step + 1} of the 4 that this page carries"
        draws = {draw["name"]: draw for draw in page.content["store"]["views"][0]["draws"] if draw["draw"] == step}
        for name in ("basic", "strong"):
            assert page.parameters(name) == dict(draws[name]["parameters"])
            clip = f"return document.querySelector('[data-view={name}] canvas').player.clip.xyz.join()"
            seen.append((step, name, browser.run(clip)))
        absent = {each.text for each in browser.find_all("[data-view=strong] .absent dt")}
        assert absent == {name for name, _, _ in page.content["store"]["explained"]} - set(
            dict(draws["strong"]["parameters"])
        )
        again.click()
    assert len({motion for _, _, motion in seen}) == len({seen[n][:2] for n in range(8)}) == 8
    assert [motion for _, _, motion in seen[8:]] == [motion for _, _, motion in seen[:2]], "after the last the first"
    playing = [each.get_attribute("data-playing") for each in browser.find_all("#views canvas")]
    assert playing == [str(page.content["store"]["views"][0]["clip"])] * 3
    select = browser.find("#views select")
    browser.run("arguments[0].value = 2; arguments[0].dispatchEvent(new Event('change'))", select)
    other = page.content["store"]["views"][2]
    assert page.parameters("basic") == dict(other["draws"][0]["parameters"])
    assert browser.find("#views canvas").get_attribute("data-playing") == str(other["clip"])


def test_names_of_strangers_are_text(browser, pages):
    page = Page(browser, pages, "hostile")
    clips = page.content["clips"]
    assert browser.run("return window.hacked") is None
    assert browser.run("return document.querySelectorAll('#page img, #page script').length") == 0
    assert page.text("h1") == browser.driver.title == EVIL
    assert page.text("#clips .clip strong") in page.content["classes"]
    shown = [each.text for each in browser.find_all("#clips .clip .name") if each.is_displayed()]
    assert set(shown) <= set(clips["name"]) and len(shown) == 12
    page.choose("class", EVIL)
    assert {clips["class"][i] for i in page.cards()} == {0}
    labels = browser.run(
        "return fastmcPage.charts['by-class'].getZr().storage.getDisplayList(true, true)"
        ".map((element) => element.style?.text).filter(Boolean)"
    )
    assert {EVIL, STYLED} <= {str(text).replace("\u2060", "") for text in labels}
    for details in browser.find_all("#skipped details"):
        browser.find("summary", details).click()
    assert EVIL in page.text("#skipped") and RUNS_IF_MARKUP in page.text("#skipped")
    browser.find_all("#clips .clip canvas")[0].click()
    assert page.text("dialog h3") == EVIL
    assert browser.run("return window.hacked") is None
    assert browser.console() == []
