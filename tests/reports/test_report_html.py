"""The page: what it says, and that no name of a model becomes markup."""

import base64
import gzip
import hashlib
import json
import platform
import re
import unicodedata
from dataclasses import replace
from html.parser import HTMLParser
from importlib.resources import files

import pytest
from graphs import Net
from reporting import HOSTILE, half, hostile, report_of

from onnx_bnfold import Options, __version__
from onnx_bnfold.advice import ADVICE
from onnx_bnfold.check import CheckOptions, check
from onnx_bnfold.errors import printable
from onnx_bnfold.reasons import Reason
from onnx_bnfold.reports.charts import noise_chart
from onnx_bnfold.reports.data import check_report
from onnx_bnfold.reports.html import page
from onnx_bnfold.reports.markup import el, table, written

FAST = CheckOptions(sets=1, draws=2)
STRICT = CheckOptions(sets=1, draws=2, rtol=0, atol=0)
FULL = CheckOptions(sets=1, draws=2, latency=True, runs=3, warm_up=1)


class Page(HTMLParser):
    """A page as a browser's parser sees it.

    Attributes:
        tags: every start tag, in order.
        attributes: (tag, name, value) of every attribute.
        texts: visible text by the tag it is in; scripts and styles apart.
        raw: content of script and style elements by tag.
    """

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html = html
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.text = ""
        self.raw: dict[str, list[str]] = {"script": [], "style": []}
        self._inside = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        self._inside = tag

    def handle_endtag(self, tag):
        self._inside = ""

    def handle_data(self, data):
        if self._inside in self.raw:
            self.raw[self._inside].append(data)
        else:
            self.text += data

    @property
    def policy(self) -> str:
        return re.search(r'Content-Security-Policy" content="([^"]*)"', self.html)[1]


@pytest.fixture
def plain_page(tmp_path, rng) -> Page:
    return Page(page(report_of(half(rng), tmp_path, checked=FULL).to_dict()))


@pytest.fixture
def hostile_page(tmp_path, rng) -> Page:
    return Page(page(report_of(hostile(rng), tmp_path, checked=STRICT).to_dict()))


def test_a_loss_in_int8_is_told(tmp_path, rng):
    """The page and the summary say the same."""
    report = replace(report_of(half(rng), tmp_path), int8_loss=12.6)
    said = "The new ranges would cost an int8 model about 13 dB (--profile int8 avoids that)."
    assert said in Page(page(report.to_dict())).text
    assert "int8" not in Page(page(replace(report, int8_loss=None).to_dict())).text


def test_a_loss_in_float16_is_told(tmp_path, rng):
    report = replace(report_of(half(rng), tmp_path), coarser_in_float16=True)
    said = "Rounding the new constants would make a float16 model less exact than the original"
    assert said in Page(page(report.to_dict())).text
    assert (
        "float16 model" not in Page(page(replace(report, coarser_in_float16=False).to_dict())).text
    )


def test_what_another_choice_could_fold_is_told(tmp_path, rng):
    report = report_of(half(rng), tmp_path)
    said = "compete to search all choices among them: at most 3 more could go if others stayed."
    assert said in Page(page(replace(report, open_choices=3).to_dict())).text
    assert "compete" not in Page(page(report.to_dict())).text


# --- names are text -------------------------------------------------------------------------


def test_hostile_names_add_no_element(hostile_page):
    assert hostile_page.tags.count("script") == 3
    assert not {"img", "b", "i", "iframe", "object", "link", "base"} & set(hostile_page.tags)


def test_hostile_names_add_no_attribute(hostile_page):
    names = {name for _, name, _ in hostile_page.attributes}
    assert not {name for name in names if name.startswith("on")}
    assert not names & {"src", "srcdoc", "style", "action", "formaction"}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_shown_as_they_are(name, hostile_page):
    """Each stands in the text, whole; what cannot be printed as an escape sequence."""
    assert printable(f"{name}bn{HOSTILE.index(name)}") in hostile_page.text


def test_nothing_invisible_reaches_the_page(hostile_page):
    kinds = {unicodedata.category(c) for c in hostile_page.html} - {"Zs"}
    assert not kinds & {"Cf", "Co", "Cs", "Zl", "Zp"}
    assert not {c for c in hostile_page.html if unicodedata.category(c) == "Cc"} - {"\n"}


@pytest.mark.parametrize("name", HOSTILE)
def test_the_name_of_a_file_is_a_name_too(name, tmp_path, rng):
    report = report_of(half(rng), tmp_path).to_dict()
    report["source"][0]["name"] = name
    found = Page(page(report))
    assert found.tags.count("script") == 3
    assert not {"img", "b", "i"} & set(found.tags)
    assert f"fold of {printable(name)}" in found.text


def test_the_data_in_the_page_are_those_of_the_report(tmp_path, rng):
    data = json.loads(json.dumps(report_of(hostile(rng), tmp_path, checked=STRICT).to_dict()))
    _, embedded, _ = Page(page(data)).raw["script"]
    assert json.loads(gzip.decompress(base64.b64decode(embedded))) == data


# --- no network -----------------------------------------------------------------------------


def test_the_page_refers_to_nothing_outside(plain_page, hostile_page):
    for found in (plain_page, hostile_page):
        links = [value for _, name, value in found.attributes if name in ("href", "src")]
        assert links
        assert all(link.startswith("#") for link in links)
        assert not re.search(r"(https?:)?//[a-z]", found.raw["style"][0])
        assert "url(" not in found.raw["style"][0]
        assert "@import" not in found.raw["style"][0]


@pytest.mark.parametrize("kind", ["script", "style"])
def test_the_policy_allows_the_page_s_own_and_nothing_else(kind, plain_page):
    content = plain_page.raw[kind][-1]
    digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
    assert f"{kind}-src 'sha256-{digest}'" in plain_page.policy
    assert "default-src 'none'" in plain_page.policy
    assert "unsafe" not in plain_page.policy


def test_a_page_without_script_shows_all(plain_page):
    """What it hides are hints to what only the script does."""
    hidden = re.findall("<([a-z]+)[^>]*hidden>([^<]*)", plain_page.html.replace('=""', ""))
    assert set(hidden) == {
        ("p", "scroll sideways to see all of it"),
        ("p", "None fits this filter."),
    }
    assert "needs-script" in plain_page.html


# --- what it says ---------------------------------------------------------------------------


def test_a_fold(plain_page):
    for text in ("1 of 2 folded", "1 kept", "check holds", "opaque_operator", "Sigmoid 'n_s'"):
        assert text in plain_page.text
    rows = re.findall('<li id="bn-[01]" class="([a-z]+)"', plain_page.html)
    assert rows == ["folded", "kept"]
    sections = [value for tag, name, value in plain_page.attributes if tag == "section"]
    assert sections == ["summary", "numerics", "latency", "list", "changes", "weights"]
    links = re.findall('<a href="#([a-z]+)">', plain_page.html.split("</nav>")[0])
    assert links == [*sections, "files"]


def test_what_one_can_do_about_a_reason(plain_page):
    assert f"What you can do: {ADVICE[Reason.OPAQUE]}." in plain_page.text
    assert 'href="#q=opaque_operator&amp;show=kept"' in plain_page.html


def test_options_that_are_not_the_default(tmp_path, rng):
    data = report_of(half(rng), tmp_path).to_dict()
    assert "All options are as by default." in Page(page(data)).text
    data["options"]["keep"] = ("x",)
    assert "Options: keep ('x',)." in Page(page(data)).text


def test_before_and_after_by_name(plain_page):
    text = plain_page.text
    assert "1 removed: 1 BatchNormalizationBatchNormalization n_b" in text
    assert "Conv n_c: other values in c_W; other values in c_bias; writes b instead of c" in text
    assert "4 removedb_scale float[4]" in text
    assert "none added" in text


def test_a_model_that_was_written(tmp_path, rng):
    data = report_of(half(rng), tmp_path).to_dict()
    assert "NOT written" in Page(page(data)).text
    assert "not written" not in Page(page({**data, "written": True})).text.lower()
    dry = Page(page({**data, "result": None}))
    assert "dry run" in dry.text
    assert "not checked" in dry.text


def test_a_check_that_failed(tmp_path, rng):
    found = Page(page(report_of(half(rng), tmp_path, checked=STRICT).to_dict()))
    assert "check FAILED" in found.text
    assert "Gates that do not hold" in found.text
    assert "numerics: output 'y'" in found.text


def test_a_check_alone(tmp_path, rng):
    check = report_of(half(rng), tmp_path, checked=FULL).to_dict()["check"]
    found = Page(page(check))
    assert "m.onnx → f.onnx" in found.text
    assert "speed-up" in found.text
    assert "query" not in {value for _, name, value in found.attributes if name == "id"}
    assert "Files and versions" not in found.text


def test_the_check_of_two_files(tmp_path, rng):
    report_of(half(rng), tmp_path)
    result = check(tmp_path / "m.onnx", tmp_path / "f.onnx", FAST)
    text = Page(page(check_report(result).to_dict())).text
    for name in ("m.onnx", "f.onnx"):
        content = (tmp_path / name).read_bytes()
        assert f"{name}{len(content):,}{hashlib.sha256(content).hexdigest()}" in text
    assert f"onnx_bnfold {__version__}, python {platform.python_version()}, numpy" in text
    assert str(tmp_path) not in text
    assert "Before and after, by name" in text
    assert "1 removed: 1 BatchNormalizationBatchNormalization n_b" in text


def test_a_model_without_norms(tmp_path, rng):
    model = half(rng)
    del model.graph.node[1:]
    model.graph.output[0].name = "c"
    found = Page(page(report_of(model, tmp_path).to_dict()))
    assert "0 of 0 folded" in found.text


def test_a_kept_one_that_is_written_otherwise(tmp_path, rng):
    report = report_of(half(rng), tmp_path, Options(standalone="conv"))
    assert "Written as mul-add" not in Page(page(report.to_dict())).text
    assert "Written as conv" in Page(page(report.to_dict())).text


def test_a_kept_one_that_cannot_be_written_otherwise(tmp_path):
    net = Net(("N", 4))
    model = net.model(net.op("Tanh", net.bn(net.op("Sigmoid", "x"))))
    report = report_of(model, tmp_path, Options(standalone="conv"))
    assert ". Not written as asked: its input has 2 axes" in Page(page(report.to_dict())).text


def test_decomposed_ones_that_stay(tmp_path):
    net = Net(("N", 4, 3, 3))
    model = net.model(net.op("Tanh", net.op("Mul", net.op("Sigmoid", "x"), net.random(4, 1, 1))))
    report = report_of(model, tmp_path)
    text = Page(page(report.to_dict())).text
    assert "Why decomposed ones stay" in text
    assert report.kept_affine_nodes[0].record.refusal.sentence in text
    assert "decomposed" not in Page(page(report_of(net.model("x"), tmp_path).to_dict())).text


def test_the_same_data_give_the_same_page(tmp_path, rng):
    data = report_of(half(rng), tmp_path).to_dict()
    assert page(data) == page(data)


def test_numbers_that_json_has_not(tmp_path, rng):
    """They are null: weights of zeros or NaN, differences from infinity."""
    model = half(rng)
    weight = model.graph.initializer[0]
    weight.raw_data = bytes(len(weight.raw_data))
    report = report_of(model, tmp_path, checked=FAST).to_dict()
    report["check"]["numerics"]["outputs"][0] |= {"times_noise": None, "max_abs": None}
    found = Page(page(report))
    assert "weights" not in {value for _, name, value in found.attributes if name == "id"}
    assert "inf × noise" in found.text


def test_each_output_has_its_own_limit_in_the_chart():
    outputs = [
        {"name": name, "times_noise": times, "limit": limit, "holds": True}
        for name, times, limit in (("a", 2.0, 4.0), ("b", 6.0, 9.0), ("c", 0.0, None))
    ]
    chart = noise_chart(outputs, 4.0)
    lines = [line for line in chart.iter("line") if line.get("class") == "limit"]
    a, b, c = (float(line.get("x1").rstrip("%")) for line in lines)
    assert a == c < b
    marks = [float(circle.get("cx").rstrip("%")) for circle in chart.iter("circle")]
    assert marks[0] < a < marks[1] < b
    texts = [text.text for text in chart.iter("text")]
    assert "limit = 4 or more" in texts
    assert "b: 6 × noise, limit 9" in [title.text for title in chart.iter("title")]
    alike = noise_chart(outputs[:1], 4.0)
    assert "limit = 4" in [text.text for text in alike.iter("text")]


# --- markup ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (el("p", "a<b"), "<p>a&lt;b</p>"),
        (el("p", "x", el("code", "&"), "y"), "<p>x<code>&amp;</code>y</p>"),
        (el("p", title='"<'), '<p title="&quot;<"></p>'),
        (el("p", "a", "b"), "<p>ab</p>"),
        (el("p", class_="k", data_x=1), '<p class="k" data-x="1"></p>'),
        (el("p", open=True, hidden=False, id=None), '<p open=""></p>'),
        (el("p", "\u202e"), "<p>\\u202e</p>"),
        (el("p", el("b"), "\u202e"), "<p><b></b>\\u202e</p>"),
        (el("input", id="q"), '<input id="q">'),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_elements(made, expected):
    assert written([made]) == expected


def test_a_table():
    text = written([table(("a", "b"), [["<", "1"]], numbers=(1,))])
    rows = re.sub(' (scope|role|data-label)="[a-z]+"', "", text)
    assert '<th>a</th><th class="number">b</th>' in rows
    assert '<td>&lt;</td><td class="number">1</td>' in rows
    assert '<td data-label="a"' in text


# --- colours --------------------------------------------------------------------------------

STYLE = files("onnx_bnfold.reports").joinpath("page.css").read_text()
THEMES = dict(zip(("light", "dark"), re.findall(r":root \{([^}]*)\}", STYLE), strict=True))
ON = {
    "ink": ("paper", "ground", "line", "norm-fill", "good-fill", "kept-fill"),
    "soft": ("paper", "ground"),
    "link": ("paper", "ground", "norm-fill"),
    "good": ("paper", "good-fill"),
    "kept": ("paper", "kept-fill"),
    "bad": ("paper", "bad-fill"),
    "norm": ("paper", "norm-fill"),
}


def luminance(colour: str) -> float:
    parts = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", THEMES)
def test_text_has_the_contrast_of_wcag_aa(theme):
    """4.5 for text, 3 for what is drawn."""
    colours = dict(re.findall("--([a-z-]+): (#[0-9a-f]{6})", THEMES[theme]))
    for text, grounds in ON.items():
        for ground in grounds:
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    for drawn in ("before", "after", "good", "kept", "bad", "norm"):
        assert contrast(colours[drawn], colours["paper"]) >= 3, drawn
