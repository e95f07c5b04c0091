"""The page of a comparison in Debian's Chromium: light and dark, small, large and printed, with hostile names."""

import copy

import compared
import pytest

from qinco.comparison import page as report_page

axe = pytest.importorskip("axe_playwright_python.sync_playwright")
pytest.importorskip("matplotlib")

HOSTILE = "</style></svg></pre><script>document.title='broken'</script><img src='http://x.invalid/a.png'>" + "W" * 120
VIEWS = [(scheme, width) for scheme in ("light", "dark") for width in (1280, 390)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two pages: as it should be, and one whose names are hostile and long."""
    folder, bad = tmp_path_factory.mktemp("comparison"), copy.deepcopy(compared.report())
    report_page.write(compared.report(), folder)
    bad["command"] = bad["cells"][-1]["reason"] = bad["data"]["db"]["path"] = HOSTILE
    for row in [*bad["cells"], *bad["targets"]]:
        row["family"] = f"{row['family']} {HOSTILE}"
    for cell in bad["cells"]:
        cell["method"] = HOSTILE
    (folder / "hostile").mkdir()
    report_page.write(bad, folder / "hostile")
    return folder


@pytest.fixture
def opened(pages):
    """A function that opens a file; in the end nothing was reported, and nothing but these files was asked for."""
    given = []

    def open_page(path, scheme="light", width=1280):
        given.append(path.as_uri())
        return pages.open(given[-1], scheme, width)

    yield open_page
    assert pages.messages == [] and [url for _, url in pages.asked] == given


@pytest.mark.parametrize(("scheme", "width"), VIEWS)
@pytest.mark.parametrize("name", ["report.html", "hostile/report.html"])
def test_every_view_is_accessible_and_fits(opened, folder, name, scheme, width):
    page = opened(folder / name, scheme, width)
    page.evaluate("document.querySelectorAll('details').forEach(of => { of.open = true })")
    violations = axe.Axe().run(page).response["violations"]
    assert [(one["id"], one["nodes"][0]["html"][:200]) for one in violations] == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.locator("svg").count() == 10
    widths = page.evaluate("[...document.querySelectorAll('svg')].map(of => of.getBoundingClientRect().width)")
    assert all(300 < one <= width for one in widths)
    assert page.locator("main script, main img").count() == 0 and page.title() != "broken"


@pytest.mark.parametrize("width", [1280, 390])
def test_names_in_pictures_are_neither_cut_nor_over_each_other(opened, folder, width):
    page = opened(folder / "report.html", width=width)
    boxes = page.evaluate(
        """[...document.querySelectorAll('main > .pair svg')].map(svg => {
             const edge = svg.getBoundingClientRect()
             return [...svg.querySelectorAll('text')].map(text => {
               const box = text.getBoundingClientRect()
               return [box.left - edge.left, box.top - edge.top, box.right - edge.left, box.bottom - edge.top,
                       edge.width, edge.height]
             })
           })"""
    )
    assert len(boxes) == 6
    for of in boxes:
        assert all(box[0] > -1 and box[1] > -1 and box[2] < box[4] + 1 and box[3] < box[5] + 1 for box in of)
        for i, a in enumerate(of):
            for b in of[:i]:
                across, down = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
                assert across < 2 or down < 0.35 * (a[3] - a[1])


def test_colours_follow_the_scheme(opened, folder):
    grounds, inks = set(), set()
    for scheme in ("light", "dark"):
        page = opened(folder / "report.html", scheme)
        grounds.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        inks.add(page.evaluate("getComputedStyle(document.querySelector('svg text')).fill"))
    assert len(grounds) == len(inks) == 2


def test_the_keyboard_reaches_everything(opened, folder):
    page = opened(folder / "report.html")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.locator("summary", has_text="CSV").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    with page.expect_download() as download:
        page.keyboard.press("Enter")
    assert download.value.suggested_filename == "report.csv"


def test_a_printed_page_is_whole(opened, folder):
    page = opened(folder / "report.html", "dark", 794)
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    cut = page.evaluate("[...document.querySelectorAll('.scroll')].filter(of => of.scrollWidth > innerWidth).length")
    assert cut == 0
    tables = page.locator("details:not(.screen) table").first
    assert tables.evaluate("of => of.getBoundingClientRect().height > 50")
    assert page.pdf(format="A4")[:4] == b"%PDF"
