"""The pages in a real browser: headless Chromium, which has to be installed for these tests."""

import copy
import json
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from browser import CHROMIUM, Browser
from reporting import HOSTILE, half, hostile, report_of

from onnx_bnfold.check import CheckOptions
from onnx_bnfold.cli.main import main
from onnx_bnfold.errors import printable
from onnx_bnfold.reports import html, norm_section, write

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
]

FULL = CheckOptions(sets=1, draws=2, latency=True, runs=3, warm_up=1, quantize=True)
LOOKS = {
    f"{width} {look}": (width, look == "dark")
    for width in (1280, 390)
    for look in ("light", "dark")
}
SHOWN = "Array.from(document.querySelectorAll('#norms > li')).filter((row) => !row.hidden)"
NAMES = f"{SHOWN}.map((row) => row.querySelector('code').textContent)"
FOCUS = "document.activeElement"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> dict:
    """The report of a fold, checked in every way."""
    model = half(np.random.default_rng(1))
    report = report_of(model, tmp_path_factory.mktemp("models"), checked=FULL)
    return json.loads(json.dumps(report.to_dict()))


@pytest.fixture(scope="module")
def pages(data, tmp_path_factory) -> dict[str, Path]:
    """A page of each kind."""
    folder = tmp_path_factory.mktemp("pages")
    rng = np.random.default_rng(1)
    (folder / "models").mkdir()
    onnx.save(half(rng), folder / "models" / f"{'long-' * 20}name.onnx")
    (folder / "models" / "broken.onnx").write_text("<html>")
    store = ["--check", "--quiet", "--report", str(folder / "store.html")]
    assert main([f"{folder / 'models'}/", "-o", str(folder / "out"), *store]) != 0
    write(folder / "fold.html", data)
    files = {"original_files": data["source"], "folded_files": data["result"]}
    shared = {key: data[key] for key in ("tool", "packages", "changes")}
    write(folder / "check.html", {**data["check"], **files, **shared})
    write(folder / "long.html", renamed(data, "features/" * 30))
    write(folder / "many.html", many(data, 400))
    write(folder / "hostile.html", report_of(hostile(rng), folder).to_dict())
    return {path.stem: path for path in folder.glob("*.html")}


def renamed(data: dict, prefix: str) -> dict:
    """Data with another prefix for the names of nodes."""
    return json.loads(re.sub(r"\bn_(?=[a-z]\b)", prefix, json.dumps(data)))


def many(data: dict, number: int) -> dict:
    """The report of a fold of many BNs: every third stays."""
    data = copy.deepcopy(data)
    gone, kept = data["batch_normalizations"]
    [layer] = data["layers"][:1]
    place = "/features/denseblock{0}/denselayer{0}"

    def named(record: dict, i: int) -> dict:
        return renamed(record, f"{place.format(i)}/")

    data["batch_normalizations"] = [named(kept if i % 3 == 2 else gone, i) for i in range(number)]
    data["layers"] = [named(layer, i) for i in range(number)]
    changes = data["changes"]
    for key, items in changes.items():
        changes[key] = [named(item, i) for i in range(number) for item in items]
    return data


# --- nothing is cut, nothing overflows ------------------------------------------------------

KINDS = ("fold", "check", "store", "long", "many", "hostile")

# What is wider than the window or than what it is in, though that does not scroll and say so.
CUT = """
Array.from(document.querySelectorAll("main *")).filter((e) => {
  if (e.closest(".strip") || e.closest("thead") || !e.getClientRects().length) return false;
  const box = e.getBoundingClientRect(), scroll = e.closest(".scroll");
  if (scroll && scroll.nextElementSibling.hidden === false) return false;
  const hides = getComputedStyle(e).overflowX !== "visible" && e.scrollWidth > e.clientWidth + 1;
  const window = document.documentElement.clientWidth;
  return box.left < -1 || box.right > window + 1 || (hides && !scroll);
}).map((e) => `${e.tagName}.${e.className.baseVal ?? e.className} ${e.textContent.slice(0, 40)}`)
"""
OPEN_ALL = "document.querySelectorAll('details').forEach((each) => { each.open = true; })"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("width", "dark"), LOOKS.values(), ids=LOOKS)
def test_nothing_is_cut_or_overflows(width, dark, kind, pages, browser, tmp_path):
    """The margin at the right looks as that of an empty page does."""
    browser.open(pages[kind], width=width, dark=dark)
    browser.ask(OPEN_ALL)
    browser.settle()
    assert browser.ask("document.documentElement.scrollWidth") == width
    assert browser.ask(CUT) == []
    margin = 70 if width == 1280 else 10
    height = min(browser.ask("document.documentElement.scrollHeight"), 8000)
    clip = {"x": width - margin, "y": 0, "width": margin, "height": height}
    assert height > 900
    seen = browser.picture(tmp_path / "margin.png", clip)
    browser.picture(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 30_000  # an empty page has 5 kB
    browser.ask("document.querySelector('main').style.visibility = 'hidden'")
    assert browser.picture(tmp_path / "empty.png", clip) == seen
    assert not browser.console


def test_what_overflows_is_found(pages, browser):
    """The test above notices it."""
    browser.open(pages["fold"], width=390)
    browser.ask("document.querySelector('h2').style.width = '400px'")
    assert browser.ask(CUT)
    assert browser.ask("document.documentElement.scrollWidth") > 390


def test_a_chart_that_scrolls_says_so(pages, browser):
    hidden = "document.querySelector('#weights .hint').hidden"
    browser.open(pages["many"], width=390)
    assert browser.ask(hidden) is False
    assert browser.ask("document.querySelector('#weights .scroll').tabIndex") == 0
    browser.open(pages["fold"], width=390)
    assert browser.ask(hidden) is True


# --- the list, its filter, and the way back -------------------------------------------------

FILTERS = {
    "a name": ("#q=n_b", ["n_b"]),
    "a reason": ("#q=opaque_operator", ["n_t"]),
    "two words in any order": ("#q=n_s+kept", ["n_t"]),
    "a state": ("#show=folded", ["n_b"]),
    "nothing": ("#q=no+such+thing", []),
    "a broken address": ("#%E0%A4%A", ["n_b", "n_t"]),
    "a row": ("#bn-1", ["n_b", "n_t"]),
}


@pytest.mark.parametrize(("fragment", "expected"), FILTERS.values(), ids=FILTERS)
def test_the_filter(fragment, expected, pages, browser):
    browser.open(pages["fold"], fragment)
    assert not browser.console
    assert browser.ask(NAMES) == expected
    assert browser.ask("document.getElementById('count').textContent") == (
        f"{len(expected)} of 2 shown"
    )
    assert browser.ask("document.getElementById('nothing').hidden") == bool(expected)


CLICKS = {
    "a reason": ("document.querySelector('.reasons a').click()", 133),
    "a button": ("document.querySelector('[data-show=folded]').click()", 267),
    "letters": (
        "(() => { const q = document.getElementById('query'); q.value = 'denselayer12/';"
        "q.dispatchEvent(new Event('input')); })()",
        1,
    ),
}


@pytest.mark.parametrize(("click", "number"), CLICKS.values(), ids=CLICKS)
def test_a_filter_shows_the_list_and_back_undoes_it(click, number, pages, browser):
    browser.open(pages["many"])
    browser.ask("scrollTo(0, 120)")
    browser.ask(click)
    browser.settle()
    assert browser.ask(f"{SHOWN}.length") == number
    top = "document.getElementById('list').getBoundingClientRect().top"
    assert browser.ask(f"{top} > -2 && {top} < innerHeight - 100")
    assert browser.ask("scrollY") != 120
    browser.ask("history.back()")
    browser.settle()
    assert browser.ask(f"{SHOWN}.length") == 400
    assert browser.ask("scrollY") == 120
    browser.ask("history.forward()")
    browser.settle()
    assert browser.ask(f"{SHOWN}.length") == number


def test_a_link_to_a_section_leaves_the_filter(pages, browser):
    browser.open(pages["many"], "#show=kept")
    browser.ask("document.querySelector('nav a[href=\"#weights\"]').click()")
    browser.settle()
    assert browser.ask("location.hash") == "#weights"
    assert browser.ask(f"{SHOWN}.length") == 133
    browser.ask("history.back()")
    browser.settle()
    assert browser.ask("location.hash") == "#show=kept"
    assert browser.ask(f"{SHOWN}.length") == 133


def test_a_square_opens_its_row(pages, browser):
    browser.open(pages["many"], "#show=folded")
    browser.ask("document.querySelector('a[href=\"#bn-302\"]').click()")
    browser.settle()
    row = "document.getElementById('bn-302')"
    assert browser.ask(f"{row}.hidden") is False
    assert browser.ask(f"{row}.querySelector('details').open")
    assert browser.ask(f"{row}.querySelectorAll('.box').length") > 2  # unpacked
    assert browser.ask(f"{row}.contains({FOCUS})")
    top = browser.ask(f"{row}.getBoundingClientRect().top")
    assert 0 < top < 900


# --- the keyboard ---------------------------------------------------------------------------


def test_the_keyboard_skips_to_the_list_and_walks_along_the_squares(pages, browser):
    browser.open(pages["many"], width=390)
    browser.press("Tab")
    assert browser.ask(f"{FOCUS}.textContent") == "Skip to BatchNormalizations"
    assert browser.ask(f"{FOCUS}.getBoundingClientRect().top") >= 0
    browser.ask("document.querySelector('nav a:last-child').focus()")
    browser.press("Tab")
    number, line = f"Number({FOCUS}.textContent)", None
    assert browser.ask(number) == 1
    browser.press("ArrowRight")
    assert browser.ask(number) == 2
    browser.press("ArrowDown")
    line = browser.ask(number) - 2
    assert line > 10
    for key, expected in (
        ("ArrowLeft", line + 1),
        ("ArrowUp", 1),
        ("ArrowUp", 1),
        ("End", 400),
        ("Home", 1),
    ):
        browser.press(key)
        assert browser.ask(number) == expected
    browser.press("ArrowRight")
    assert browser.ask(f"{FOCUS}.getAttribute('aria-label')").endswith("denselayer1/b, folded")
    assert browser.ask("document.getElementById('says').textContent").startswith("2: ")
    browser.press("Tab")
    assert browser.ask(f"{FOCUS}.closest('.strip')") is None  # one stop for all
    assert browser.ask("document.querySelectorAll('.strip a[tabindex=\"0\"]').length") == 1


LABELLED = """
Array.from(document.querySelectorAll(
  "input, button, a, summary, nav, svg[role=img], [role=group], [role=toolbar]"))
  .filter((e) => e.getClientRects().length)
  .filter((e) => !(e.getAttribute("aria-label") ?? e.textContent).trim())
  .map((e) => e.outerHTML.slice(0, 80))
"""


@pytest.mark.parametrize("kind", ["fold", "check", "store"])
def test_all_that_can_be_used_has_a_name(kind, pages, browser):
    browser.open(pages[kind])
    assert browser.ask(LABELLED) == []
    assert browser.ask("document.querySelectorAll('h1').length") == 1
    assert browser.ask("document.documentElement.lang") == "en"


# --- large pages, and pages without a script ------------------------------------------------


def test_what_comes_later_is_what_a_small_page_has(data, pages, browser, tmp_path, monkeypatch):
    content = "document.querySelector('#bn-1 .pictures').outerHTML"
    browser.open(pages["fold"])
    expected = browser.ask(content)
    for module in (
        norm_section,
        html.fold_sections,
        html.fold_sections.changes_section.__globals__,
    ):
        place = module if isinstance(module, dict) else vars(module)
        monkeypatch.setitem(place, "AT_ONCE", 0)
    write(tmp_path / "later.html", data)
    browser.open(tmp_path / "later.html")
    browser.ask(OPEN_ALL)
    browser.settle()
    assert browser.ask(content) == expected
    for section in ("changes", "weights"):
        assert browser.ask(f"document.querySelectorAll('#{section} details').length") > 0
        assert browser.ask(f"document.querySelectorAll('#{section} .missing').length") == 0
        assert (
            browser.ask(f"document.querySelectorAll('#{section} details :is(li, td)').length") > 0
        )


def test_a_page_of_5000_is_small_and_opens_soon(data, browser, tmp_path):
    path = tmp_path / "large.html"
    write(path, many(data, 5000))
    assert path.stat().st_size < 3_000_000
    browser.send("Performance.enable", timeDomain="threadTicks")
    browser.open(path)
    browser.settle()
    told = browser.send("Performance.getMetrics")["metrics"]
    browser.send("Performance.disable")
    seconds = next(each["value"] for each in told if each["name"] == "TaskDuration")
    assert seconds < 3  # of the processor; about 0.7 where nobody else computes
    assert browser.ask(f"{SHOWN}.length") == 5000
    browser.ask("document.querySelector('.reasons a').click()")
    assert browser.ask(f"{SHOWN}.length") == 1666


def test_without_a_script(pages, browser):
    """All but the filter is there, and the parts of a large page say what they need."""
    browser.open(pages["fold"], script=False)
    assert browser.ask(f"{SHOWN}.length") == 2
    assert browser.ask("document.querySelector('.controls').getClientRects().length") == 0
    assert browser.ask("document.querySelectorAll('#norms .box').length") > 4
    assert browser.ask("document.querySelectorAll('.diff li').length") > 4
    browser.open(pages["many"], script=False)
    assert browser.ask(f"{SHOWN}.length") == 400
    assert "needs JavaScript" in browser.ask(
        "document.querySelector('#changes .missing').textContent"
    )


# --- names of models are text ---------------------------------------------------------------


def test_hostile_names_are_text(pages, browser):
    browser.open(pages["hostile"])
    browser.ask(OPEN_ALL)
    browser.settle()
    assert not browser.console
    assert browser.ask("document.querySelectorAll('img, iframe').length") == 0
    assert browser.ask("document.querySelectorAll('script').length") == 3
    names = [printable(f"{name}bn{number}") for number, name in enumerate(HOSTILE)]
    assert browser.ask(NAMES)[: len(names)] == names


def test_the_policy_is_in_force(pages, browser, tmp_path):
    """A script that is not the page's own does not run, and the console says so."""
    text = (
        pages["fold"]
        .read_text()
        .replace("</main>", "<script>document.title = 'owned'</script></main>")
    )
    (tmp_path / "r.html").write_text(text)
    browser.open(tmp_path / "r.html")
    assert browser.ask("document.title") != "owned"
    assert any("Content Security Policy" in line for line in browser.console)
