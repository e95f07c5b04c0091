"""Take the screenshots of the documentation: the report of `qinco compare`, and the page of `qinco serve`.

    python docs/make_screenshots.py [FOLDER]

of the vectors of examples/demo, in Debian's Chromium by playwright (the extra integrations). It takes some minutes;
what it measures stays in FOLDER, by default build/screenshots, and is not measured again.
"""

import shutil
import sys
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

import qinco

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from serving import serving

ROOT = Path(__file__).resolve().parents[1]
DEMO, PICTURES = ROOT / "examples" / "demo", ROOT / "docs" / "screenshots"
MAX_BYTES = 150_000


def make_report(folder: Path) -> Path:
    """Compare our smallest codec with some rivals, for a minute each."""
    page = folder / "report" / "report.html"
    if not page.exists():
        qinco.compare(
            DEMO / "train.bvecs", DEMO / "base.bvecs", DEMO / "query.bvecs", output=folder / "report", bytes=[4, 8],
            minutes=1, presets=["qinco2-XS"], rivals=["PQ", "OPQ", "PRQ"], parts=[], resume=True,
        )  # fmt: skip
    return page


def make_collection(folder: Path) -> Path:
    """A collection of 8,000 compressed records with payloads, and its recall."""
    place = folder / "photos.qinco"
    if not place.exists():
        x_ND = qinco.open_vectors(DEMO / "base.bvecs")[:]
        payloads = [{"photo": row // 80, "spot": row % 80} for row in range(len(x_ND))]
        codec = qinco.Codec.fit(DEMO / "train.bvecs", num_steps=8, preset="qinco2-XS", minutes=1)
        with qinco.Collection.create(place, metric="l2", codec=codec, exact_below=0) as docs:
            docs.upsert(range(len(x_ND)), x_ND, payloads)
            docs.optimize()
            docs.evaluate(x_ND, queries=DEMO / "query.bvecs", keep=True)
    return place


def take(browser: Browser, address: str, name: str, height: int, shown: str, searched: str | None = None) -> None:
    """Write what a browser shows below a heading, or below it after a search for the neighbours of a record."""
    context = browser.new_context(color_scheme="light", viewport={"width": 1000, "height": height})
    page = context.new_page()
    page.goto(address)
    page.wait_for_selector("h2")
    if searched is not None:
        page.get_by_label("Id of a record").fill(searched)
        page.get_by_role("button", name="Search").click()
        page.wait_for_selector("td.payload")
    page.get_by_role("heading", name=shown, exact=True).first.evaluate(
        "of => window.scrollTo(0, of.getBoundingClientRect().top + scrollY - 30)"
    )
    page.wait_for_timeout(500)  # until pictures are drawn
    path = PICTURES / f"{name}.png"
    page.screenshot(path=path)
    context.close()
    size = path.stat().st_size
    print(f"{path.relative_to(ROOT)}: {size:,} bytes")
    if size > MAX_BYTES:
        raise SystemExit(f"{path} has {size:,} bytes, and may have {MAX_BYTES:,}: take a smaller part of the page")


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    PICTURES.mkdir(exist_ok=True)
    report, collection = make_report(folder), make_collection(folder)
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        raise SystemExit("needs Chromium: apt-get install chromium")
    with sync_playwright() as playwright, serving(collection.parent, read_only=True) as server:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        take(browser, report.as_uri(), "report", 640, "Recall and bytes")
        take(browser, f"{server.url}/#{collection.stem}", "page", 600, "Error")
        take(browser, f"{server.url}/#{collection.stem}", "search", 560, "Search", searched="42")
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else ROOT / "build" / "screenshots")
