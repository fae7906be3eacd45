"""One HTML file that needs nothing else, tells every set and escapes what it is given."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from evaluations import both_classes, evaluation, real_alone

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

from streamer.errors import TrainingError
from streamer.training import plots
from streamer.training.figures import read_evaluation
from streamer.training.report import render_html, write_report

VOID = {"meta", "br", "link", "img", "input", "hr"}


class Structure(HTMLParser):
    """Elements open and close in order; collects text and attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text.append(data)


def parsed(html: str) -> Structure:
    structure = Structure()
    structure.feed(html)
    structure.close()
    assert structure.open == []
    return structure


@pytest.fixture(scope="module")
def html() -> str:
    return render_html(evaluation())


def test_well_formed_and_alone(html: str) -> None:
    page = parsed(html)
    for name, value in page.attributes:
        if name in ("src", "href", "xlink:href", "data"):
            assert value is not None
            assert value.startswith("#"), (name, value)
    assert "@import" not in html
    assert "url(http" not in html
    assert "<script" not in html
    ids = [value for name, value in page.attributes if name == "id"]
    for reference in re.findall(r'(?:href="#|url\(#)([^")]+)', html):
        assert reference in ids


def test_tells_every_set_member_and_figure(html: str) -> None:
    text = re.sub(r"\s+", " ", " ".join(parsed(html).text))
    for expected in (
        "The mean of 2 networks (first, second)",
        "4 real and 4 fake videos, 4 groups of people, 80 frames",
        "Seen in training: nobody of them",
        "0.910–0.980",
        "DeepFaceLab",
        "real clips",
        "alert.raise_at, 0.8",
        "The swapped one scores higher in 1 of 2",
        "Nothing here was measured.",
        "What the words mean",
        "0.760",
        "over those videos alone that have 10 or more",
    ):
        assert expected in text, expected


def test_what_is_given_is_escaped(html: str) -> None:
    assert "<title>Measured &lt;by hand&gt;</title>" in html
    assert "Swaps &amp; &lt;b&gt;originals&lt;/b&gt;" in html
    odd = evaluation(sets=(both_classes('<i>"odd" & name</i>'),), curves=())
    page = render_html(odd)
    parsed(page)
    assert "<i>" not in page


def test_dark_and_light(html: str) -> None:
    assert "prefers-color-scheme: dark" in html
    assert "currentColor" in html
    assert "#010203" not in html


def contrast(one: str, other: str) -> float:
    """WCAG's ratio of two colours #rrggbb."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_colours_of_lines_and_text_stand_out_on_both_grounds(html: str) -> None:
    grounds = re.findall(r"--ground: (#[0-9a-f]{6})", html)
    assert len(grounds) == 2
    for ground, ink, faint in zip(
        grounds,
        re.findall(r"--text: (#[0-9a-f]{6})", html),
        re.findall(r"--faint: (#[0-9a-f]{6})", html),
        strict=True,
    ):
        assert min(contrast(colour, ground) for colour in plots.COLOURS) >= 3
        assert contrast(ink, ground) >= 7
        assert contrast(faint, ground) >= 4.5


def test_the_same_evaluation_gives_the_same_bytes(html: str) -> None:
    assert render_html(evaluation()) == html


def test_written_with_its_figures(tmp_path: Path) -> None:
    path = write_report(evaluation(), tmp_path / "new")
    assert path.read_text().startswith("<!doctype html>")
    assert read_evaluation(tmp_path / "new" / "report.json") == evaluation()
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match="cannot write the report"):
        write_report(evaluation(), tmp_path / "file")


def test_sets_without_fakes_have_no_plots_to_draw() -> None:
    html = render_html(evaluation(sets=(real_alone(),), curves=()))
    assert "<svg" not in html
    assert "Robustness" not in html


def test_many_pairs_are_folded() -> None:
    pair = both_classes().pairs[0]
    page = render_html(evaluation(sets=(both_classes(pairs=(pair,) * 13),)))
    assert "<details open>" not in page
    assert "<details open>" in render_html(evaluation())


@pytest.mark.parametrize(
    "svg",
    [
        plots.roc_plot(both_classes()),
        plots.reliability_plot(both_classes()),
        plots.gain_plot(both_classes().frames_gain, "frames", "swaps"),
        plots.curve_plot(evaluation().curves[0]),
        plots.pairs_plot(both_classes("a & b")),
    ],
    ids=["roc", "reliability", "gain", "curve", "pairs"],
)
def test_plots_are_elements_with_a_name(svg: str) -> None:
    root = ElementTree.fromstring(svg)
    assert root.tag.endswith("svg")
    assert root.get("role") == "img"
    assert root.get("aria-label")
    assert root.get("viewBox")
    assert root.get("width") is None
    assert "<text" in svg
    assert "#000000" not in svg
