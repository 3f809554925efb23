"""The page in a real browser: headless Chromium, which has to be installed for these tests."""

import re
import shutil
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from reporting import HOSTILE, half, hostile, report_of

from onnx_bnfold.check import CheckOptions
from onnx_bnfold.errors import printable
from onnx_bnfold.reports import write

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
]

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
    "--disable-component-update", "--no-first-run", "--hide-scrollbars",
    "--window-size=1180,1600", "--enable-logging=stderr", "--v=0", "--virtual-time-budget=2000",
)  # fmt: skip


@dataclass(frozen=True)
class Seen:
    """What Chromium made of a page: the tree it ended with, and what its console says."""

    dom: str
    console: list[str]

    @property
    def shown(self) -> list[str]:
        """Text of the rows of the table that are not hidden."""
        rows = re.findall(r"<tr id=\"bn-\d+\"([^>]*)>(.*?)</tr>", self.dom, re.DOTALL)
        return [text for attributes, text in rows if "hidden" not in attributes]


def browse(path: Path, *more: str, fragment: str = "") -> Seen:
    profile = path.parent / "profile"
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", *more, f"{path.as_uri()}{fragment}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return Seen(done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line])


@pytest.fixture
def page(tmp_path, rng) -> Path:
    checked = CheckOptions(sets=1, draws=2, latency=True, runs=3, warm_up=1)
    write(tmp_path / "r.html", report_of(half(rng), tmp_path, checked=checked).to_dict())
    return tmp_path / "r.html"


@pytest.fixture
def hostile_page(tmp_path, rng) -> Path:
    write(tmp_path / "r.html", report_of(hostile(rng), tmp_path).to_dict())
    return tmp_path / "r.html"


def test_table_and_filter_are_there_and_the_console_is_empty(page):
    seen = browse(page, "--dump-dom")
    assert not seen.console
    assert len(seen.shown) == 2
    assert "2 of 2 shown" in seen.dom
    assert 'class="controls"' in seen.dom  # visible, now that the script runs


FILTERS = {
    "a name": ("#q=n_b", ["n_b"]),
    "a reason": ("#q=opaque_operator", ["n_t"]),
    "two words in any order": ("#q=n_s+kept", ["n_t"]),
    "nothing": ("#q=no+such+thing", []),
    "a broken address": ("#%E0%A4%A", ["n_b", "n_t"]),
    "a row": ("#bn-1", ["n_b", "n_t"]),
}


@pytest.mark.parametrize(("fragment", "expected"), FILTERS.values(), ids=FILTERS)
def test_the_filter(fragment, expected, page):
    seen = browse(page, "--dump-dom", fragment=fragment)
    assert not seen.console
    assert len(seen.shown) == len(expected)
    for name, row in zip(expected, seen.shown, strict=True):
        assert f"<code>{name}</code>" in row


def test_hostile_names_are_text(hostile_page):
    seen = browse(hostile_page, "--dump-dom")
    assert not seen.console
    assert "<img" not in seen.dom
    assert len(re.findall("<script", seen.dom.split("</body>")[0])) == 2
    assert len(seen.shown) == len(HOSTILE) + 1
    for number, name in enumerate(HOSTILE):
        shown = printable(f"{name}bn{number}")
        for letter, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
            shown = shown.replace(letter, entity)
        assert f"<code>{shown}</code>" in seen.shown[number]


def test_the_policy_is_in_force(page):
    """A script that is not the page's own does not run, and the console says so."""
    text = page.read_text().replace("</main>", "<script>document.title = 'owned'</script></main>")
    page.write_text(text)
    seen = browse(page, "--dump-dom")
    assert "<title>owned" not in seen.dom
    assert any("Content Security Policy" in line for line in seen.console)


def test_it_can_be_looked_at(page, tmp_path):
    browse(page, f"--screenshot={tmp_path / 'page.png'}")
    content = (tmp_path / "page.png").read_bytes()
    assert struct.unpack(">II", content[16:24]) == (1180, 1600)
    assert len(content) > 50_000  # an empty page has 5 kB
