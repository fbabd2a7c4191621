"""report.html: one file that parses, shows what is there, and lets nobody's text become markup."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

from rl3d.html_page import Chart, svg
from rl3d.preview import view_sheet
from rl3d.text_to_3d.alarms import History, Look
from rl3d.text_to_3d.report_page import charts, page, write_page

EVIL = "<script>alert(\"1\")</script> & 'co'"
REPORT: dict[str, Any] = {
    "prompt": EVIL,
    "seed": 3,
    "prior": {"name": EVIL, "licence": "none"},
    "method": {"name": "dreamreward", "reward": {"name": EVIL}},
    "warnings": [EVIL],
    "config": {"prompt": EVIL, "distill": {"steps": 4}},
    "stages": {EVIL: {"seconds": 1.25, "peak_memory_mib": 300}},
    "mesh": {"faces": 12, "watertight": True, "extents": [1.0, 0.5, 0.25]},
    "export": {},
    "judges": {"gold": {"similarity": 0.5, "rank_of_20": 1, "probability": 0.9, "colour": EVIL}, "unknown_words": []},
    "guard": {
        "about": EVIL,
        "reward": EVIL,
        "guard": EVIL,
        "looks": 3,
        "kept_step": 10,
        "alarms": [{"step": 20, "kind": "floaters", "message": EVIL, "numbers": {}}],
    },
}


def history() -> History:
    looks = [
        Look(10 * i, 0.1 * i, 0.5 - 0.1 * i, (0.6, 0.1 * i, 0.0), 0.25, 0.0, 0.0, 0.02 * i, (0.1, 0.1, 0.1, 0.1))
        for i in range(3)
    ]
    return History(tuple(looks), 0.5)


class Tags(HTMLParser):
    """Opened tags, and those that were never closed."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        if tag not in ("meta", "img", "rect", "line", "polyline"):
            self.open.append(tag)
        for name, value in attrs:
            assert not name.startswith("on") and not (value or "").startswith(("http", "//"))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def parsed(text: str) -> Tags:
    tags = Tags()
    tags.feed(text)
    tags.close()
    assert tags.open == []
    return tags


def test_the_page_parses_and_nobodys_text_is_markup(tmp_path: Path) -> None:
    write_page(tmp_path, REPORT, charts(history(), REPORT["guard"]))
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    tags = parsed(text)
    assert "script" not in tags.seen and tags.seen.count("svg") == 7 and "img" not in tags.seen
    assert "&lt;script&gt;" in text and "http" not in text.replace("http-equiv", "")
    assert not list(tmp_path.glob(".*"))


def test_pictures_are_inside(tmp_path: Path) -> None:
    view_sheet(torch.rand(1, 3, 8, 8), tmp_path / "views.png")
    write_page(tmp_path, REPORT, [])
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert text.count('src="data:image/png;base64,iVBOR') == 1 and "turntable" not in text


def test_a_run_that_nobody_watched_has_a_page_too() -> None:
    bare = {k: v for k, v in REPORT.items() if k != "guard"} | {"judges": {}, "warnings": []}
    text = page(bare, charts(History(()), None), [])
    parsed(text)
    assert "Nobody watched" in text and "<svg" not in text


def test_curves_marks_and_threshold_by_hand() -> None:
    """Two points at the ends, a level over them: places follow from the margins (58, 14) and sizes (388 x 130)."""
    figure = svg(Chart("a < b", {"x": [(0, 0.0), (10, 1.0)], "y": [(0, 1.0), (10, 0.0)]}, 2.0, [5], 10))
    (drawn,) = ET.fromstring(figure).findall("svg")
    lines = [line.attrib["points"] for line in drawn.findall("polyline")]
    # 6 % of room above 2 and below 0: a height of 2.24, so 0 lies at 14 + 130 * 2.12 / 2.24 and 1 at 14 + 130 / 2.
    assert lines == ["58.0,137.0 446.0,79.0", "58.0,79.0 446.0,137.0"]
    marks = [(m.attrib["x1"], m.attrib["stroke"]) for m in drawn.findall("line") if "stroke-width" in m.attrib]
    assert marks == [("252.0", "#c0182b"), ("446.0", "#1b8a3d")]
    (level,) = (m for m in drawn.findall("line") if "stroke-dasharray" in m.attrib)
    assert float(level.attrib["y1"]) == pytest.approx(14 + 130 * 0.12 / 2.24, abs=0.1)
    assert ET.fromstring(figure).findtext("figcaption") == "a < b"


@pytest.mark.parametrize("curve", [[(0, 0.5)], [(0, 0.0), (5, 0.0)], [(3, -1e9), (4, 1e9)]])
def test_odd_curves_are_drawn(curve: list[tuple[int, float]]) -> None:
    figure = svg(Chart("odd", {"x": curve}))
    assert "nan" not in figure and "inf" not in figure
    ET.fromstring(figure)
    assert svg(Chart("none", {"x": []})) == ""


def test_charts_show_the_looks() -> None:
    drawn = charts(history(), REPORT["guard"])
    assert [list(chart.curves) for chart in drawn][:3] == [["reward"], ["guard"], ["colour"]]
    assert drawn[1].curves["guard"] == [(0, 0.5), (10, 0.4), (20, pytest.approx(0.3))]
    floating = next(chart for chart in drawn if "floating" in chart.curves)
    assert floating.alarms == [20] and floating.best == 10 and floating.level is not None
