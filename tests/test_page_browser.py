"""The page in a browser: what is pointed at plays, what is clicked shows, and names stay text."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from chromium import Browser, soon, why_no_browser
from once import made_once
from page_content import CLASSES, report_content

from fastmc.page.document import write_page
from fastmc.page.motion import unpack

pytestmark = [
    pytest.mark.program,
    pytest.mark.skipif(why_no_browser() is not None, reason=f"no browser: {why_no_browser()}"),
]
SECTIONS = ["header", "accuracies", "map", "confusions", "curves", "attack", "time", "settings"]
EVIL = "<script>alert(1)</script>"
RUNS_IF_MARKUP = "</script><img src=x onerror=\"window.hacked='image'\"><svg onload=\"window.hacked='svg'\">"
STYLED = "{a|b} {c|"
ARROW_LEFT, ARROW_RIGHT, ENTER, ESCAPE = "\ue012", "\ue014", "\ue007", "\ue00c"
"""Keys, as WebDriver numbers them."""


def hostile_content() -> dict:
    """Two runs of somebody who has put markup into every name there is."""
    content = report_content(2, tests=30, training=30, classes=(EVIL, STYLED, RUNS_IF_MARKUP))
    content["clips"]["name"] = [f"{RUNS_IF_MARKUP}{STYLED}{n}" for n in range(60)]
    content["fields"] = ["subject", "camera"]
    content["title"] = f"{EVIL} {STYLED}"
    content["notes"] = [RUNS_IF_MARKUP]
    content["made"] = content["by"] = RUNS_IF_MARKUP
    for n, run in enumerate(content["runs"]):
        run["label"] = f"{RUNS_IF_MARKUP} {STYLED} {n}"
        run["folder"] = run["command"] = f"runs/{EVIL}"
        run["facts"] = [[EVIL, RUNS_IF_MARKUP]]
        run["settings"] = [[EVIL, STYLED]]
        run["predictions"]["by"] = run["map"]["words"] = run["time"]["says"] = EVIL
        for panel in run["panels"]:
            panel["title"] += RUNS_IF_MARKUP
            panel["lines"][0] |= {"name": f"{EVIL} {STYLED}", "help": RUNS_IF_MARKUP}
            panel["mark"] = {"y": 0.5, "text": STYLED}
        for part in run["time"]["parts"]:
            part["name"] += STYLED
    for n, group in enumerate(content["groups"]):
        group["label"] = f"{EVIL} {STYLED} {n}"
    content["differences"] = [{"setting": EVIL, "values": [STYLED, RUNS_IF_MARKUP]}]
    content["accuracies"]["rows"] = [STYLED, EVIL, RUNS_IF_MARKUP]
    content["runs"][0] |= {"published": [1.0, 2.0, 3.0], "published_source": RUNS_IF_MARKUP}
    return content


def six_content() -> dict:
    """Two methods over three seeds each, which have raw coordinates of their own."""
    content = report_content(3, tests=40, training=30)
    b1, a2mc, _ = content["runs"]
    a2mc |= {"raw": [50.0, 60.0, 70.0], "published": [80.0, 90.0, None], "published_source": "table 1"}
    labels = [(method, seed) for method in ("b1", "a2mc") for seed in range(3)]
    runs = [
        run | {"label": f"{method}, seed {seed}", "trained": [value - seed for value in run["trained"]]}
        for run, (method, seed) in zip([b1] * 3 + [a2mc] * 3, labels, strict=True)
    ]
    methods = {"setting": "method", "values": [method for method, _ in labels]}
    return content | {
        "runs": runs,
        "groups": [{"label": "b1", "runs": [0, 1, 2]}, {"label": "a2mc", "runs": [3, 4, 5]}],
        "differences": [methods, {"setting": "seed", "values": [str(seed) for _, seed in labels]}],
    }


def bare_content() -> dict:
    """A run that was stopped before anything was evaluated, of clips whose classes nobody knows."""
    content = report_content(1, tests=12, training=12)
    nothing = dict.fromkeys(("panels", "bank_full", "predictions", "map", "attack", "time"))
    return content | {
        "fields": [],
        "notes": [],
        "classes": [],
        "runs": [content["runs"][0] | nothing | {"trained": [None] * 3, "untrained": [None] * 3}],
        "accuracies": None,
        "clips": content["clips"] | {"class": [-1] * 24},
    }


def unmeasured_content() -> dict:
    """A run whose chart of shares and whose probe have no point."""
    content = report_content(1, tests=12, training=12)
    for n, why in ((1, None), (3, "Switched off.")):
        panel = content["runs"][0]["panels"][n]
        panel["why"] = why
        panel["lines"] = [line | {"x": [], "y": []} for line in panel["lines"]]
    return content


PAGES = {
    "one": lambda: report_content(1),
    "two": lambda: report_content(2, tests=40, training=30),
    "six": six_content,
    "three": lambda: report_content(3, tests=40, training=30),
    "many": lambda: report_content(1, tests=300, training=130, classes=tuple(f"action {n}" for n in range(60))),
    "hostile": hostile_content,
    "bare": bare_content,
    "unmeasured": unmeasured_content,
}


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> Path:
    """A folder of the pages, each beside its content."""

    def make(folder: Path) -> None:
        for name, content in PAGES.items():
            made = content()
            write_page(folder / f"{name}.html", made)
            (folder / f"{name}.json").write_text(json.dumps(made))

    return made_once(tmp_path_factory, "pages", make)


@pytest.fixture(scope="module")
def browser():
    browser = Browser()
    yield browser
    browser.close()


class Page:
    """An open page and its content."""

    def __init__(self, browser: Browser, folder: Path, name: str, **window) -> None:
        self.browser = browser
        self.content = json.loads((folder / f"{name}.json").read_text())
        browser.open(folder / f"{name}.html", **window)

    def find(self, selector: str):
        return self.browser.find(selector)

    def all(self, selector: str) -> list:
        return self.browser.find_all(selector)

    def text(self, selector: str) -> str:
        return self.browser.run("return document.querySelector(arguments[0]).textContent", selector)

    def pixel(self, chart: str, series: int, at: list[float]) -> list[float]:
        """Where a place of a chart is in it."""
        return self.browser.run(
            "return fastmcPage.charts[arguments[0]].convertToPixel({seriesIndex: arguments[1]}, arguments[2])",
            chart, series, at,
        )  # fmt: skip

    def data(self, chart: str, series: str) -> list:
        """Of the series of this id or number, what is drawn."""
        return self.browser.run(
            "const all = fastmcPage.charts[arguments[0]].getOption().series;"
            "return (all.find(({id}) => id === arguments[1]) ?? all[arguments[1]]).data",
            chart, series,
        )  # fmt: skip

    def dot(self, clip: int, run: int = 0, *, click: bool = False) -> None:
        """Point at the dot of a clip on a map, or click it."""
        of = self.content["runs"][run]["map"]
        n = of["clip"].index(clip)
        host = self.all(".map")[run]
        self.browser.run("arguments[0].scrollIntoView({block: 'center'})", host)
        self.browser.mouse(host, *self.pixel(f"map {run}", 1, [of["x"][n], of["y"][n]]), click=click)

    def rings(self, run: int) -> list[list[float]]:
        """Where the rings of a map are."""
        return self.browser.run(
            "return fastmcPage.charts[arguments[0]].getZr().storage.getDisplayList(true)"
            ".filter((each) => each.zlevel === 1 && each.type === 'circle').map(({shape}) => [shape.cx, shape.cy])",
            f"map {run}",
        )

    def lonely_dots(self, run: int = 0, reach: float = 0.8) -> list[int]:
        """Clips whose dots lie apart from all others."""
        of = self.content["runs"][run]["map"]
        places = np.stack([of["x"], of["y"]], axis=1)
        away = np.linalg.norm(places[:, None] - places, axis=2) + 9 * np.eye(len(places))
        return [of["clip"][n] for n in np.flatnonzero(away.min(axis=1) > reach)]

    def playing(self) -> str | None:
        return self.find("[data-section=map] .side canvas").get_attribute("data-playing")

    def drawn_texts(self, chart: str) -> str:
        """All text that a chart has on its canvas, without what keeps braces from words."""
        texts = self.browser.run(
            "return fastmcPage.charts[arguments[0]].getZr().storage.getDisplayList(true, true)"
            ".map((element) => element.style?.text).filter(Boolean)",
            chart,
        )
        return "\n".join(map(str, texts)).replace("\u2060", "")


def colour_of(browser: Browser, selector: str, name: str = "backgroundColor") -> float:
    """How light it is, 0 to 255."""
    found = browser.run("return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]", selector, name)
    numbers = [float(part) for part in found[found.index("(") + 1 : -1].replace("srgb", "").split(",")[:3]]
    return sum(numbers) / 3


@pytest.mark.parametrize(
    "window", [{}, {"scheme": "dark"}, {"width": 390, "height": 800}], ids=["light", "dark", "phone"]
)
@pytest.mark.parametrize("name", PAGES)
def test_it_opens_from_disk_and_says_nothing_on_the_console(browser, pages, name, window):
    page = Page(browser, pages, name, **window)
    assert browser.console() == []
    shown = [each.get_attribute("data-section") for each in page.all("[data-section]")]
    assert shown == (["header", "confusions", "settings"] if name == "bare" else SECTIONS)
    assert browser.run("return performance.getEntriesByType('resource').length") == 0, "it loads something"
    assert browser.run("return document.documentElement.scrollWidth <= innerWidth"), "it is wider than the window"
    assert (colour_of(browser, "body") > 128) == (window.get("scheme") != "dark")
    empty = browser.run("return Object.values(fastmcPage.charts).filter((c) => !c.getWidth() || !c.getHeight()).length")
    assert empty == 0, "a chart has no room"


def test_on_a_narrow_page_the_bar_goes_along(browser, pages):
    page = Page(browser, pages, "one", width=400, height=800)
    assert browser.run("const row = document.querySelector('.links'); return row.scrollWidth > row.clientWidth")
    browser.run("document.getElementById('settings').scrollIntoView({behavior: 'instant'})")
    inside = """
        const link = document.querySelector('[aria-current]').getBoundingClientRect();
        const row = document.querySelector('.links').getBoundingClientRect();
        return [document.querySelector('[aria-current]').textContent,
                link.left >= row.left - 1 && link.right <= row.right + 1];
    """
    assert soon(lambda: page.all("[aria-current]") and browser.run(inside)[1]), browser.run(inside)


def test_an_error_on_the_console_would_be_seen(browser, pages):
    Page(browser, pages, "bare")
    browser.run("setTimeout(() => { throw new Error('on purpose') })")
    assert soon(lambda: any("on purpose" in line for line in browser.console()))


def test_the_browser_unpacks_motion_as_python_does(browser, pages):
    page = Page(browser, pages, "one")
    script = """
        const [packed, done] = arguments;
        const plain = ({ xyz, there }) => [Array.from(xyz), Array.from(there)];
        fastmcPage.unpack(packed, 25).then((clips) => done(clips.map(plain)));
    """
    packed = page.content["motion"]
    found = browser.driver.execute_async_script(script, packed)
    for (xyz, there), clip in zip(found, unpack(packed, 25), strict=True):
        seen = np.array(there, bool).reshape(clip.shape[:2])
        np.testing.assert_array_equal(seen, (clip != 0).any(axis=(2, 3)))
        back = np.where(seen[..., None, None], np.reshape(xyz, clip.shape), 0)
        np.testing.assert_allclose(back, clip, atol=1e-6)
    assert any(not all(there) for _, there in found), "a body is absent"


def test_pointing_at_a_dot_plays_its_clip(browser, pages):
    page = Page(browser, pages, "one")
    one, other = page.lonely_dots()[1:3]
    for clip in (one, other):
        page.dot(clip)
        assert soon(lambda clip=clip: page.playing() == str(clip)), (page.playing(), clip)
        assert page.content["clips"]["name"][clip] in page.text(".side .caption")
        assert CLASSES[page.content["clips"]["class"][clip]] in page.text(".side .caption strong")
    picture = "return document.querySelector('.side canvas').toDataURL()"
    first = browser.run(picture)
    assert soon(lambda: browser.run(picture) != first), "it stands still"
    browser.find(".side .player-controls button").click()
    assert page.playing() is None
    still = browser.run(picture)
    assert not soon(lambda: browser.run(picture) != still, patience=0.4), "it moves although it is paused"


def test_a_click_plays_the_five_nearest_clips_of_training(browser, pages):
    page = Page(browser, pages, "one")
    assert page.all("[data-part=neighbours] .clip") == []
    clip = page.lonely_dots()[4]
    page.dot(clip, click=True)
    of = page.content["runs"][0]["map"]
    near = of["neighbours"][of["clip"].index(clip)]
    cards = soon(lambda: page.all("[data-part=neighbours] .clip"))
    assert [int(card.get_attribute("data-clip")) for card in cards] == [clip, *near]
    for card, other, cosine in zip(cards[1:], near, of["cosines"][of["clip"].index(clip)], strict=True):
        same = page.content["clips"]["class"][other] == page.content["clips"]["class"][clip]
        assert ("✓ same class" if same else "✗ another class") in card.text
        assert page.content["clips"]["name"][other] in card.text
        assert float(re.search(r"cosine ([\d.]+)", card.text)[1]) == pytest.approx(cosine, abs=6e-4)
        assert browser.find("canvas", card).get_attribute("data-playing") == str(other)
    close = next(each for each in page.all("[data-part=neighbours] button") if each.text == "Close")
    close.click()
    assert page.all("[data-part=neighbours] .clip") == []


def test_filters_filter_and_colours_are_those_of_what_was_asked(browser, pages):
    page = Page(browser, pages, "one")
    clips, tests = page.content["clips"], page.content["runs"][0]["map"]["clip"]
    assert len(page.data("map 0", "shown")) == len(tests)
    chips = page.all(".legend.values button")
    chips[2].click()
    wanted = sum(clips["class"][i] == 2 for i in tests)
    assert len(page.data("map 0", "shown")) == wanted < len(tests) == wanted + len(page.data("map 0", "hidden"))
    assert f"{wanted} of {len(tests)} clips" in page.text(".toolbar")
    chips[0].click()
    assert len(page.data("map 0", "shown")) == sum(clips["class"][i] in (0, 2) for i in tests)
    next(each for each in page.all(".legend.values button") if each.text == "All").click()
    assert len(page.data("map 0", "shown")) == len(tests)

    def colour_by(name: str) -> list[str]:
        next(each for each in page.all(".segments button") if each.text == name).click()
        return [each.text for each in page.all(".legend.values button") if each.text != "All" and each.text]

    assert colour_by("subject") == [f"subject {n}" for n in range(1, 6)]
    colours = [each["itemStyle"]["color"] for each in page.data("map 0", "shown")]
    by_subject = {}
    for clip, colour in zip(tests, colours, strict=True):
        by_subject.setdefault(clips["subject"][clip], set()).add(colour)
    assert all(len(found) == 1 for found in by_subject.values()) and len(set(colours)) == 5
    assert colour_by("right or wrong") == ["right", "wrong", "not predicted"]
    predictions = page.content["runs"][0]["predictions"]
    wrong = [
        i for i, a, b in zip(*(predictions[k] for k in ("clip", "true", "predicted")), strict=True) if a != b and i >= 0
    ]
    page.all(".legend.values button")[1].click()
    assert len(page.data("map 0", "shown")) == len(wrong) > 0
    colour_by("class")
    assert len(page.data("map 0", "shown")) == len(wrong), "what was chosen stays"
    page.find("[data-part=kept] button").click()
    assert len(page.data("map 0", "shown")) == len(tests) and page.all("[data-part=kept] button") == []
    page.all(".legend.values button")[1].click()
    colour_by("right or wrong")
    assert page.find("[data-part=kept]").text == f"{CLASSES[1]} ×"
    page.all(".legend.values button")[1].click()
    assert len(page.data("map 0", "shown")) == sum(clips["class"][i] == 1 for i in wrong)
    colour_by("class")
    assert page.all(".legend.values button")[1].get_attribute("aria-pressed") == "true"


def test_search_finds_by_name_and_class_and_enter_plays(browser, pages):
    page = Page(browser, pages, "one")
    box = page.find("[data-section=map] input[type=search]")
    box.send_keys("N0042")
    assert len(page.data("map 0", "shown")) == 1
    box.send_keys(ENTER)
    assert page.playing() == "42"
    box.clear()
    box.send_keys("WAVE")
    wave = [i for i in page.content["runs"][0]["map"]["clip"] if page.content["clips"]["class"][i] == 1]
    assert len(page.data("map 0", "shown")) == len(wave)
    box.clear()
    box.send_keys("nothing of this name")
    assert page.data("map 0", "shown") == []
    assert "0 of 90 clips: nothing matches" in page.text("[data-section=map] .toolbar")
    page.find("[data-section=settings] summary").click()
    page.find("[data-section=settings] input[type=search]").send_keys("nothing of this name")
    assert page.text("[data-section=settings] [role=status]") == "nothing matches"
    assert browser.console() == []


def confused(content: dict, run: int, true: int, predicted: int) -> list[int]:
    found = content["runs"][run]["predictions"]
    rows = zip(found["clip"], found["true"], found["predicted"], strict=True)
    return [i for i, a, b in rows if (a, b) == (true, predicted) and i >= 0]


def test_a_click_on_a_confusion_plays_the_clips_that_were_confused(browser, pages):
    page = Page(browser, pages, "two")
    predictions = page.content["runs"][0]["predictions"]
    pairs = {(a, b) for a, b in zip(predictions["true"], predictions["predicted"], strict=True) if a != b}
    shown_first = page.text("[data-part=confused] h3")
    a, b = next(pair for pair in sorted(pairs) if f"{CLASSES[pair[0]]}, taken for {CLASSES[pair[1]]}" != shown_first)
    host = page.find(".chart.confusion")
    browser.mouse(host, *page.pixel("confusions", 0, [b, a]), click=True)
    assert soon(lambda: page.text("[data-part=confused] h3") == f"{CLASSES[a]}, taken for {CLASSES[b]}")
    shown = [int(card.get_attribute("data-clip")) for card in page.all("[data-part=confused] .clip")]
    assert shown == confused(page.content, 0, a, b)[:6]
    browser.mouse(host, *page.pixel("confusions", 0, [1, 1]), click=True)
    assert soon(lambda: page.text("[data-part=confused] h3") == f"{CLASSES[1]}: recognised")
    row = page.all(".classes button")[0]
    name = browser.find(".name", row).text
    row.click()
    assert page.text("[data-part=confused] h3") == f"{name}, taken for another class"
    assert row.get_attribute("aria-pressed") == "true" and len(page.all(".classes [aria-pressed='true']")) == 1
    top = "return document.querySelector('[data-part=confused] h3').getBoundingClientRect().top"
    assert soon(lambda: 0 < browser.run(top) < browser.run("return innerHeight")), "its clips are in sight"
    shares = [int(each.text.split()[0]) for each in page.all(".classes .figure")]
    assert shares == sorted(shares) and len(shares) == len(CLASSES)


def test_runs_are_compared(browser, pages):
    page = Page(browser, pages, "two")
    labels = [run["label"] for run in page.content["runs"]]
    assert [each.text for each in page.all(".map-card h3")] == labels
    clip = page.lonely_dots(1)[3]
    page.dot(clip, 1)
    assert soon(lambda: page.playing() == str(clip))
    for run in (0, 1):
        of = page.content["runs"][run]["map"]
        n = of["clip"].index(clip)
        ((x, y),) = page.rings(run)
        assert [x, y] == pytest.approx(page.pixel(f"map {run}", 1, [of["x"][n], of["y"][n]]), abs=0.5)
        assert CLASSES[page.content["clips"]["class"][clip]] in page.drawn_texts(f"map {run}")
    page.dot(clip, 1, click=True)
    assert soon(lambda: page.all("[data-part=neighbours] .clip"))
    assert len(page.rings(0)) == len(page.rings(1)) == 2
    browser.find("[title='Zoom in']", page.all(".map-card")[0]).click()
    of = page.content["runs"][0]["map"]
    n = of["clip"].index(clip)
    moved = page.pixel("map 0", 1, [of["x"][n], of["y"][n]])
    assert all(ring == pytest.approx(moved, abs=0.5) for ring in page.rings(0)), "rings go with their dots"
    rows = page.all("[data-part=neighbours] .neighbours")
    assert len(rows) == 2 and all(len(browser.find_all(".clip", row)) == 6 for row in rows)
    lines = page.data("curve loss (nats)", 0), page.data("curve loss (nats)", 3)
    assert [len(line) for line in lines] == [60, 60] and lines[0] != lines[1]
    differing = page.text("[data-part=differences]")
    assert all(word in differing for word in ("settings.ema", "0.990", "0.991", *labels))
    first = page.text(".confusion + .hint")
    next(each for each in page.all("[data-section=confusions] .segments button") if each.text == labels[1]).click()
    assert page.text(".confusion + .hint") != first


def test_several_runs_are_told_of_in_groups(browser, pages):
    page = Page(browser, pages, "six")
    means = [np.mean([run["trained"][0] for run in page.content["runs"][of]]) for of in (slice(3), slice(3, 6))]
    where = f"of 40 test clips in {len(CLASSES)} classes are recognised (kNN top-1)"
    raw = " and ".join(f"{page.content['runs'][n]['raw'][0]:.1f} %" for n in (0, 3))
    said = f"b1 and a2mc, three seeds each: {means[0]:.1f} % and {means[1]:.1f} % {where}; raw coordinates give {raw}."
    assert page.text(".lead") == said
    heads = [each.text for each in page.all("[data-section=accuracies] thead th")]
    own = ["raw coordinates, b1", "raw coordinates, a2mc", "published, a2mc"]
    assert heads == ["", "b1", "a2mc", "untrained", *own]
    assert all(f"{mean:.1f}" in page.drawn_texts("accuracies").split("\n") for mean in means), "bars have figures"
    Page(browser, pages, "three")
    assert page.text(".lead").startswith("b1 (one seed) and a2mc (two seeds): ")
    Page(browser, pages, "two")
    assert page.text(".lead").startswith("a2mc seed 0 and a2mc seed 1: ")


def test_tables_have_room(browser, pages):
    page = Page(browser, pages, "six")
    narrow = "return [...document.querySelectorAll('.table')].filter((e) => e.scrollWidth > e.clientWidth).length"
    assert browser.run(narrow) == 0, "all columns are there at once"
    page = Page(browser, pages, "six", width=390, height=800)
    cells = "[...document.querySelectorAll('[data-part=differences] th, [data-part=differences] td')]"
    assert browser.run(f"return Math.min(...{cells}.map((each) => each.clientWidth))") >= 80, "words stay words"
    name = page.find("[data-part=differences] tbody th")
    place = "return arguments[0].getBoundingClientRect().left"
    before = browser.run(place, name)
    browser.run("arguments[0].scrollLeft = 999", page.find("[data-part=differences] .table"))
    assert browser.run("return arguments[0].scrollLeft", page.find("[data-part=differences] .table")) > 100
    assert browser.run(place, name) == before, "names stay where they are"


def test_one_chooses_whose_maps_are_shown(browser, pages):
    page = Page(browser, pages, "six")

    def shown() -> list[str]:
        return [each.text for each in page.all(".map-card h3") if each.is_displayed()]

    def press(label: str) -> None:
        next(each for each in page.all("[data-section=map] .legend button") if each.text == label).click()

    assert shown() == ["b1, seed 0", "a2mc, seed 0"] and "2 of 6 maps" in page.text("[data-section=map]")
    page.dot(next(clip for clip in page.lonely_dots() if clip % 10))
    assert [each.text[2:].split(":")[0] for each in page.all(".side .verdict")] == shown()
    press("b1, seed 2")
    assert shown() == ["b1, seed 0", "b1, seed 2", "a2mc, seed 0"] and "3 of 6 maps" in page.text("[data-section=map]")
    assert len(page.rings(2)) == 1 and len(page.all(".side .verdict")) == 3
    page.dot(page.lonely_dots(2)[3], 2, click=True)
    assert soon(lambda: len(page.all("[data-part=neighbours] .neighbours")) == 3)
    for label in ("b1, seed 0", "a2mc, seed 0", "b1, seed 2"):
        press(label)
    assert shown() == ["b1, seed 2"] and len(page.all("[data-part=neighbours] .neighbours")) == 1
    assert browser.console() == []


def test_many_classes_are_searched_and_the_keyboard_goes_along_them(browser, pages):
    page = Page(browser, pages, "many")

    def listed() -> list[str]:
        return [each.text for each in page.all(".legend.values button") if each.is_displayed()]

    assert listed() == [f"action {n}" for n in range(60)]
    box = page.find("[data-section=map] input[type=search]")
    box.send_keys("ACTION 1")
    assert listed() == ["action 1", *(f"action {n}" for n in range(10, 20))]
    box.send_keys("\ue004", ARROW_RIGHT, ARROW_LEFT, ARROW_LEFT)  # the tab key, and round
    assert browser.run("return document.activeElement.textContent") == "action 19"
    browser.press(ENTER)
    of = page.content["clips"]["class"]
    assert len(page.data("map 0", "shown")) == sum(of[i] == 19 for i in page.content["runs"][0]["map"]["clip"]) > 0
    browser.press(ARROW_RIGHT)
    assert browser.run("return document.activeElement.textContent") == "All"
    browser.press(ENTER)
    assert browser.run("return document.activeElement.textContent") == "action 1", "the focus is not lost"
    assert page.all(".legend.values [aria-pressed='true']") == []


def test_of_several_runs_the_loss_is_shown_and_its_terms_at_a_press(browser, pages):
    page = Page(browser, pages, "six")
    drawn = [len(page.data("curve loss (nats)", n)) for n in range(18)]
    assert drawn == [60, 0, 0] * 6
    next(each for each in page.all(".legend.strokes button") if each.text == "L_con").click()
    assert [len(page.data("curve loss (nats)", n)) for n in range(3)] == [60, 60, 0]
    series = browser.run(
        "return fastmcPage.charts['curve loss (nats)'].getOption().series.map((s) => s.itemStyle.color)"
    )
    assert len({*series[:9]}) == len({*series[9:]}) == 1 and series[0] != series[9], "seeds share a colour"


def test_what_was_not_measured_is_said_in_the_place_of_a_chart(browser, pages):
    page = Page(browser, pages, "unmeasured")
    said = [each.text for each in page.all(".curves .empty")]
    assert said == ["Not measured in any epoch so far.", "Switched off."] and len(page.all(".curve")) == 2
    assert browser.console() == []


def test_each_run_has_its_attack(browser, pages):
    page = Page(browser, pages, "six")
    runs = [each for each in page.all("[data-section=attack] .segments button") if "seed" in each.text]
    assert [each.text for each in runs] == ["b1, seed 0", "b1, seed 1", "b1, seed 2"]
    runs[1].click()
    assert soon(lambda: browser.run("return fastmcPage.charts['attack 1'] !== undefined"))
    assert [each.is_displayed() for each in page.all(".attack-words")] == [False, True]


def test_what_is_near_hides_what_is_far(browser, pages):
    """Of a head and a hand in one line of sight."""
    Page(browser, pages, "one")
    script = """
        const [nearer, done] = arguments;
        const skeleton = { joints: ["head", "left hand"], bones: [], sides: ["middle", "left"] };
        const player = new fastmcPage.Player(skeleton);
        document.body.append(player.element);
        Object.assign(player.camera, { yaw: 0, pitch: 0 });
        const xyz = Float32Array.from([0, 0, 0, 0, 0, nearer]);
        player.show({ frames: 1, bodies: 1, joints: 2, xyz, there: [1] }, { still: true });
        const { width, height } = player.canvas;
        const [r, , b] = player.canvas.getContext("2d").getImageData(width / 2, height / 2, 1, 1).data;
        return b - r;
    """
    assert browser.run(script, 1) > 100, "the hand, in the blue of what is left"
    assert browser.run(script, -1) < 50, "the head, which is grey"


def test_a_player_that_is_gone_is_forgotten(browser, pages):
    Page(browser, pages, "one")
    script = """
        const player = new fastmcPage.Player({ joints: ["a"], bones: [], sides: ["middle"] });
        let drawn = 0;
        player.draw = () => (drawn += 1);
        fastmcPage.setTheme("dark");
        const before = drawn;
        player.destroy();
        drawn = 0;
        fastmcPage.setTheme("light");
        return [before, drawn];
    """
    before, after = browser.run(script)
    assert before == 1 and after == 0


def test_the_spread_over_seeds_is_said(browser, pages):
    page = Page(browser, pages, "three")
    values = [run["trained"][0] for run in page.content["runs"][1:]]
    row = [cell.text for cell in page.all("[data-section=accuracies] tbody tr:first-child td")]
    said = [float(part) for part in row[1].removesuffix(" %").split(" ± ")]
    assert said == pytest.approx([np.mean(values), np.std(values, ddof=1)], abs=0.06)
    assert "±" not in row[0], "one seed has no spread"
    assert "2 of a2mc" in page.text("[data-section=accuracies]")


def test_curves_zoom_together_and_say_what_they_are(browser, pages):
    page = Page(browser, pages, "one")
    host = page.find(".chart.curve")
    assert "bank full" in page.drawn_texts("curve shares") and "1/√D" in page.drawn_texts("curve std of the features")
    mark = "return fastmcPage.charts['curve shares'].getOption().series[0].markLine.data[0]"
    full = browser.run(mark)
    assert full["label"]["align"] == ("left" if full["xAxis"] < 30.5 else "right"), "off the axis's figures"

    def window(chart: str) -> tuple[float, float]:
        zoom = browser.run("return fastmcPage.charts[arguments[0]].getOption().dataZoom[0]", chart)
        return round(zoom["start"]), round(zoom["end"])

    left, right = (page.pixel("curve loss (nats)", 0, [epoch, 5])[0] for epoch in (20, 40))
    browser.mouse(host, left, 120, drag_to=right)
    assert soon(lambda: window("curve loss (nats)") != (0, 100))
    start, end = window("curve loss (nats)")
    assert abs(start - 100 * 19 / 59) < 4 and abs(end - 100 * 39 / 59) < 4
    assert soon(lambda: window("curve shares") != (0, 100))
    next(each for each in page.all("[data-section=curves] button") if each.text == "Show all epochs").click()
    assert soon(lambda: window("curve loss (nats)") == window("curve shares") == (0, 100))
    browser.run("arguments[0].focus()", host)
    browser.press("+")
    assert soon(lambda: window("curve loss (nats)") == (25, 75))
    kept = (
        "const how = {key: arguments[1], ctrlKey: true, cancelable: true, bubbles: true};"
        "return arguments[0].dispatchEvent(new KeyboardEvent('keydown', how))"
    )
    for place in (".curve", ".map", ".confusion", ".side canvas", ".legend.values button"):
        keys = ("+", "-", "0", "ArrowLeft")
        assert all(browser.run(kept, page.find(place), key) for key in keys), "Ctrl and a key are the browser's"
    chip = next(each for each in page.all(".legend.strokes button") if each.text == "L_con")
    browser.mouse(chip, 5, 5)
    assert soon(lambda: "Of the contrast of a clip's two views" in page.text(".help"))
    chip.click()
    assert page.data("curve loss (nats)", 1) == [] and page.data("curve loss (nats)", 0)


def test_the_attack_follows_its_slider(browser, pages):
    page = Page(browser, pages, "one")
    slider = page.find(".strength input")
    browser.run("arguments[0].scrollIntoView({block: 'center'})", slider)
    browser.find("[data-section=attack] .player-controls button").click()
    picture = "return document.querySelector('[data-section=attack] .player canvas').toDataURL()"
    usual, words = browser.run(picture), page.text(".attack-words")
    assert "norm is 0.5 m, as in training" in words and "3.06 now" in words, "it begins where training is"
    assert "as in training" in page.drawn_texts("attack 0")
    said = page.text("[data-section=attack]")
    assert "fixed random weights" in said
    assert "does not begin at 0. The most there can be is ln 128 = 4.85 nats." in said
    slider.send_keys(ARROW_LEFT)
    assert soon(lambda: "norm is 0.375 m" in page.text(".attack-words"))
    assert browser.run(picture) != usual
    choice = page.find("[data-section=attack] select")
    choice.send_keys(page.all("[data-section=attack] option")[1].text[:6])
    assert soon(lambda: page.content["clips"]["name"][1] in page.text("[data-section=attack] .caption"))
    assert "norm is 0.25 m, as in training" in page.text(".attack-words"), "each clip begins at its own"
    marks = "return fastmcPage.charts['attack 0'].getOption().series[0].markLine.data.map(({xAxis}) => xAxis)"
    assert browser.run(marks) == [0.25]


def test_all_of_it_goes_by_keys(browser, pages):
    page = Page(browser, pages, "one")
    browser.run("arguments[0].focus()", page.find(".map"))
    seen = {page.playing()}
    for key in (ARROW_LEFT, ARROW_LEFT, ARROW_RIGHT, "\ue013", "\ue015"):
        browser.press(key)
        seen.add(page.playing())
    assert len(seen) >= 4
    browser.press(ENTER)
    assert len(page.all("[data-part=neighbours] .clip")) == 6
    browser.press(" ")
    assert page.playing() is None
    browser.press(" ")
    assert page.playing() is not None
    browser.press(ESCAPE)
    assert page.all("[data-part=neighbours] .clip") == []
    heat = page.find(".chart.confusion")
    browser.run("arguments[0].focus()", heat)
    before = page.text("[data-part=confused] h3")
    browser.press(ARROW_RIGHT, ENTER)
    assert page.text("[data-part=confused] h3") != before
    canvas = page.find(".side canvas")
    browser.run("arguments[0].focus()", canvas)
    browser.press(" ")
    picture = "return document.querySelector('.side canvas').toDataURL()"
    still = browser.run(picture)
    browser.press(ARROW_RIGHT)
    assert browser.run(picture) != still, "an arrow turns it"
    assert len(page.all(".legend.values [tabindex='0']")) == 1, "a stop of the list, and arrows go along it"
    used = ":not(.values) > button, select, input, a, .player canvas, summary, .map, .confusion, .curve, .table"
    unreached = "return [...document.querySelectorAll(arguments[0])].filter((each) => each.tabIndex < 0).length"
    assert browser.run(unreached, used) == 0


def test_the_switch_changes_all_colours(browser, pages):
    page = Page(browser, pages, "one")
    axis = "return fastmcPage.charts.accuracies.getOption().yAxis[0].axisLabel.color"
    light = browser.run(axis)
    page.find("button.theme").click()
    assert colour_of(browser, "body") < 64 and browser.run(axis) != light
    page.find("button.theme").click()
    assert colour_of(browser, "body") > 192 and browser.run(axis) == light


def nothing_ran(browser: Browser) -> bool:
    """No alert, no program of a name, no element of its markup."""
    return browser.run(
        "return window.hacked === undefined && document.images.length === 0"
        "&& document.querySelectorAll('script:not([type])').length === 0 && !document.querySelector('svg[onload]')"
    )


def test_names_of_strangers_stay_text(browser, pages):
    page = Page(browser, pages, "hostile")
    said = page.text("body main")
    for name in (EVIL, RUNS_IF_MARKUP, STYLED):
        assert said.count(name) > 5
    assert browser.run("return document.title") == f"{EVIL} {STYLED}"
    clip = page.lonely_dots()[2]
    page.dot(clip, click=True)
    assert soon(lambda: page.playing() == str(clip))
    assert page.content["clips"]["name"][clip] in page.text(".side .caption")
    next(each for each in page.all(".segments button") if each.text == "subject").click()
    for press in page.all(".classes button") + page.all("summary"):
        press.click()
    assert nothing_ran(browser) and browser.console() == []


def test_names_of_strangers_stay_text_in_charts(browser, pages):
    """ECharts takes {style|word} for a style, and strings for templates: both stay as they were written."""
    page = Page(browser, pages, "hostile")
    for chart in browser.run("return Object.keys(fastmcPage.charts)"):
        browser.run(
            "fastmcPage.charts[arguments[0]].dispatchAction({type: 'showTip', seriesIndex: 0, dataIndex: 1})", chart
        )
    assert soon(
        lambda: f"{STYLED}, taken for" in page.drawn_texts("confusions") or STYLED in page.drawn_texts("confusions")
    )
    for chart, name in {
        "confusions": STYLED,
        "accuracies": STYLED,
        f"curve shares{RUNS_IF_MARKUP}": f"{EVIL} {STYLED}",
        "time 0": STYLED,
    }.items():
        assert name in page.drawn_texts(chart), chart
    assert nothing_ran(browser)


def test_markup_that_got_in_would_not_run(browser, pages):
    """The policy of the page, tried: markup is put into it as a fault of ours would."""
    Page(browser, pages, "bare")
    browser.run("document.body.insertAdjacentHTML('beforeend', arguments[0])", RUNS_IF_MARKUP)
    browser.run(
        "document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.hacked = 1'}))"
    )
    assert soon(lambda: any("Content Security Policy" in line for line in browser.console()))
    assert browser.run("return window.hacked === undefined")
    assert not nothing_ran(browser), "what looks for markup finds it"


def test_what_is_missing_is_said(browser, pages):
    page = Page(browser, pages, "bare")
    assert "come with the linear evaluation" in page.text("[data-section=confusions]")
    assert [each.text for each in page.all("nav .links a")] == ["Confusions", "Settings"]
