"""The files of a report: what they say, whatever it holds, and that a page needs nothing else."""

import base64
import csv
import io
import itertools
import json
import re
import sys
from copy import deepcopy
from html.parser import HTMLParser

import compared
import pytest

from qinco.comparison import page
from qinco.comparison.export import CSV_COLUMNS, csv_text, markdown
from qinco.comparison.plots import recall_by_bytes, spread
from qinco.comparison.reading import crossings, groups

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")
HOSTILE = "</pre></details><script>alert(1)</script><img src=//x.example onerror=alert(2)> $x$ | `a` \x1b[0m ]]> 中"
VOID = {"meta", "br", "link", "img", "use", "path"}


class Outline(HTMLParser):
    """The elements, attributes and texts of a page; every element that is opened is closed."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.attributes, self.texts, self.open = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture(scope="module")
def report() -> dict:
    return compared.report()


@pytest.fixture(scope="module")
def small(report) -> dict:
    """Two families and one group: quicker to draw."""
    cells = [
        cell | {"results": cell["results"][:1]} for cell in report["cells"] if cell["family"] in ("qinco2-S", "PQ")
    ]
    return report | {"cells": cells, "scaling": None, "metrics": ["l2"]}


@pytest.fixture(scope="module")
def folder(report, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    page.write(report, folder)
    return folder


def needs_nothing_else(text: str) -> Outline:
    outline = Outline(text)
    assert not {"script", "img", "link", "iframe", "object", "form", "input"} & set(outline.tags)
    assert not [name for _, name, _ in outline.attributes if name.startswith("on")]
    addresses = [value for _, name, value in outline.attributes if name in ("href", "src", "xlink:href", "action")]
    assert all(value.startswith(("#", "data:text/csv")) for value in addresses)
    assert not re.search(r"url\((?!#)|@import", text)
    ids = [value for _, name, value in outline.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    named = {value[1:] for value in addresses if value[0] == "#"} | set(re.findall(r"url\(#([^)]+)\)", text))
    assert named <= set(ids)
    assert len(text.encode()) < page.MAX_BYTES
    return outline


def test_the_page_is_one_file_below_a_megabyte(folder):
    outline = needs_nothing_else((folder / "report.html").read_text())
    assert "://" not in (folder / "report.html").read_text()
    assert outline.tags.count("svg") == 10  # two of each group, time, and three of scaling


def test_pictures_tell_their_figures_to_who_does_not_see_them(folder, report):
    attributes = Outline((folder / "report.html").read_text()).attributes
    told = [value for tag, name, value in attributes if tag == "svg" and name == "aria-label"]
    assert len(told) == 10
    value = next(cell for cell in report["cells"] if cell["id"] == "qinco2-S-48")["results"][0]["recall"]["10"][0]
    assert f"{value:.3f}".lstrip("0") + " at 48 bytes" in told[0]


def test_names_beside_lines_keep_their_distance_and_order():
    wanted = [0.5, 0.51, 0.0, 0.52, 1.2, 0.9]
    places = spread(wanted, 0.1)
    assert sorted(range(6), key=places.__getitem__) == sorted(range(6), key=wanted.__getitem__)
    heights = sorted(places)
    assert all(upper - lower > 0.1 - 1e-9 for lower, upper in itertools.pairwise(heights))
    assert heights[0] == 0 and heights[-1] <= 1 + 1e-9
    assert places[1] == pytest.approx(0.51)  # in the middle of its neighbours
    assert spread([], 0.1) == [] and len(spread([0.5] * 30, 0.1)) == 30


def test_more_lines_than_have_room_are_drawn_without_names(report):
    many, pq = deepcopy(report), [cell for cell in report["cells"] if cell["family"] == "PQ"]
    for number in range(20):
        changed = {"family": f"PQ{number}", "method": f"PQ{number}"}
        many["cells"] += [cell | changed | {"id": f"PQ{number}-{cell['bytes']}"} for cell in pq]
    few, drawn = (recall_by_bytes("r", of, groups(of)[0]) for of in (report, many))
    assert few is not None and drawn is not None
    shown = [re.findall(r"<text[^>]*>([^<]+)</text>", svg) for svg in (few, drawn)]
    assert "not measured" not in "".join(shown[0] + shown[1])
    assert sum(bool(re.fullmatch(r"PQ\d+", text)) for text in shown[1]) < 20


def test_every_table_has_headers(folder):
    outline = Outline((folder / "report.html").read_text())
    assert outline.tags.count("caption") == outline.tags.count("table") > 8
    assert outline.tags.count("tr") == [a for a in outline.attributes if a[0] == "th"].count(("th", "scope", "row")) + (
        outline.tags.count("table")
    )


def test_the_answer_has_the_bytes_of_ours_and_of_the_best_rival(folder, report):
    rows = [row for row in report["targets"] if row["target"] == 0.95 and row["bytes"] is not None]
    rows = [row for row in rows if (row["metric"], row["queries"]) == ("l2", "given")]
    best = [min((row for row in rows if row["ours"] is ours), key=lambda row: row["bytes"]) for ours in (True, False)]
    for name in ("report.html", "report.md"):
        text = "".join(Outline((folder / name).read_text()).texts).replace("\\", "")
        sentence = next(line for line in text.splitlines() if "An R@10 of .95 needs" in line)
        for row in best:
            assert row["family"] in sentence and f"{row['bytes']:g}" in sentence


def test_csv_is_the_json(folder, report):
    text = (folder / "report.csv").read_text()
    rows = list(csv.DictReader(io.StringIO(text)))
    assert list(rows[0]) == list(CSV_COLUMNS)
    expected = [(cell, result) for cell in report["cells"] for result in cell["results"] or [{}]]
    codes = [row for row in rows if row["kind"] == "codes"]
    assert len(codes) == len(expected)
    for row, (cell, result) in zip(codes, expected, strict=True):
        for source, names in ((cell, ("id", "method", "bytes", "reason", "train_seconds", "decode_us", "model_bytes")),
                              (result, ("metric", "queries", "mse", "mse_se"))):  # fmt: skip
            assert [row[name] for name in names] == [
                "" if (v := source.get(name)) is None else str(v) for name in names
            ]
        assert json.loads(row["settings"]) == cell["settings"] and json.loads(row["ours"]) == cell["ours"]
        if result:
            assert [float(row["recall_10"]), float(row["recall_10_se"])] == result["recall"]["10"]
            assert [float(row["overlap_10"]), float(row["overlap_10_se"])] == result["overlap_10"]
    assert sum(row["kind"] == "index" for row in rows) == sum(len(cell["index"]) for cell in report["cells"])
    assert [row["query_us"] for row in rows if row["kind"] == "exact"] == ["4100.0"]


def test_the_page_holds_the_csv(folder):
    text, outline = (folder / "report.csv").read_text(), Outline((folder / "report.html").read_text())
    link = next(value for _, name, value in outline.attributes if name == "href" and value.startswith("data:"))
    assert base64.b64decode(link.partition("base64,")[2]).decode() == text
    assert text.strip() in "".join(outline.texts)


def test_markdown_tables_are_whole(folder):
    blocks = re.findall(r"(?:^\|.*\n)+", (folder / "report.md").read_text(), re.M)
    assert len(blocks) > 8
    for block in blocks:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1


def test_the_same_report_gives_the_same_page(folder, report):
    assert page.html(json.loads(json.dumps(report))) == (folder / "report.html").read_text()


def test_what_was_not_finished_says_why(folder):
    for name in ("report.html", "report.md", "report.csv"):
        text = (folder / name).read_text()
        assert "stopped in round 11 of 25" in text and "nsplits must divide 384" in text and "time limit" in text


def changed(value, change):
    """A report with every leaf changed."""
    if isinstance(value, dict):
        return {key: changed(one, change) for key, one in value.items()}
    return [changed(one, change) for one in value] if isinstance(value, list) else change(value)


def test_hostile_texts_are_texts(small):
    kept = {"l2", "inner_product", "given", "other", "done"}
    bad = changed(small, lambda v: v + HOSTILE if isinstance(v, str) and v not in kept else v)
    bad["cells"][0]["status"] = bad["cells"][0]["results"][0]["metric"] = HOSTILE
    outline = needs_nothing_else(page.html(bad))
    assert any("<script>alert(1)</script>" in text for text in outline.texts)
    assert re.search(r"(?<!\\)<|(?<!\\)`", markdown(bad)) is None


@pytest.mark.parametrize(
    "change", [lambda v: None, lambda v: float("nan"), lambda v: "x", lambda v: -1, lambda v: True]
)
def test_reports_of_anything_have_a_page(report, change):
    for bad in (changed(report, change), {key: change(None) for key in report}):
        shown = "".join(needs_nothing_else(page.html(bad)).texts)
        assert "not measured" in shown and not {"nan", "None", "inf"} & set(re.findall(r"\w+", shown))
        assert markdown(bad) and csv_text(bad)


def test_an_empty_report_has_a_page(tmp_path):
    page.write({}, tmp_path)
    assert "No codec was measured" in (tmp_path / "report.html").read_text()
    assert len((tmp_path / "report.csv").read_text().splitlines()) == 1


def test_a_very_large_report_stays_below_a_megabyte(small):
    cells = [cell | {"reason": "x" * 9000, "status": "failed"} for _ in range(9) for cell in small["cells"]]
    text = page.html(small | {"cells": cells})
    needs_nothing_else(text)
    assert "To stay below 1 MB this page lacks" in text and "An R@10 of .95 needs" in text


def test_a_given_price_is_the_only_one(small):
    text = page.html(small | {"price": 4.5})
    assert "The price is 4.5 a GB" in text and re.search(r'scope="col" class="number">at 4.5<', text)
    assert 'class="number">at 10<' not in text and 'class="number">at 10<' in page.html(small)


def test_a_recall_beyond_the_sizes_tried_is_no_figure(report):
    found = {(one.family, one.target): one for one in crossings(report, groups(report)[0])}
    assert str(found["signs", 0.99]) == "over 48"
    few = report | {"cells": [cell for cell in report["cells"] if cell["bytes"] >= 48], "targets": []}
    found = {(one.family, one.target): one for one in crossings(few, groups(few)[0])}
    assert str(found["qinco2-S", 0.9]) == "at most 48"


def test_a_codec_that_loses_is_said_to_lose(report):
    swapped = report | {
        key: [row | {"ours": row["family"] == "PQ"} for row in report[key]] for key in ("cells", "targets")
    }
    assert "more than the" in markdown(swapped) and "not worth it" in markdown(swapped)


def test_figures_of_who_calls_it_are_left_alone(small, monkeypatch):
    import matplotlib

    monkeypatch.setitem(matplotlib.rcParams, "font.family", ["serif"])
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)
    page.html(small)
    assert matplotlib.rcParams["font.family"] == ["serif"] and "matplotlib.pyplot" not in sys.modules
