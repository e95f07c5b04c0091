"""The page in Debian's Chromium: light and dark, small and large, with a keyboard, and with hostile payloads."""

import json
import shutil
import sqlite3
from contextlib import closing
from urllib.parse import urlsplit

import numpy as np
import pytest
from serving import serving

import qinco
from qinco.collection.schema import FILE

axe = pytest.importorskip("axe_playwright_python.sync_playwright")
pytest.importorskip("uvicorn")

HOSTILE = "</script><img src=x onerror=\"document.title='broken'\"><b>bold</b>"
VIEWS = [(scheme, width) for scheme in ("light", "dark") for width in (1280, 390)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A compressed collection with some exact vectors, one that is new, and one with a record."""
    folder, rng = tmp_path_factory.mktemp("collections"), np.random.default_rng(0)
    x_ND = rng.standard_normal((1500, 16), dtype=np.float32)
    codec = qinco.Codec.fit(x_ND, num_steps=4, codebook_size=16, epochs=1, seed=0)
    with qinco.Collection.create(folder / "docs.qinco", codec=codec) as docs:
        docs.upsert(range(1200), x_ND[:1200], [{"text": HOSTILE, "year": 1990 + n % 30} for n in range(1200)])
        docs.optimize()
        docs.upsert([HOSTILE, "42"], x_ND[1200:1202], [{"year": 2000}, {"year": 2001}])
        docs.evaluate(x_ND[:1200], keep=True)
    shutil.copytree(folder / "docs.qinco", folder / "old.qinco")
    with closing(sqlite3.connect(folder / "old.qinco" / FILE)) as connection, connection:  # before times were measured
        (kept,) = connection.execute("SELECT value FROM meta WHERE name = 'recall'").fetchone()
        kept = json.dumps({name: value for name, value in json.loads(kept).items() if name != "latency"})
        connection.execute("UPDATE meta SET value = ? WHERE name = 'recall'", (kept,))
    qinco.Collection.create(folder / "new.qinco").close()
    names = {"a/b": {"dim": 16, "metric": "l2"}, "<i>c": {"dim": 16}}
    with qinco.NamedCollection.create(folder / "things.qinco", names) as things:
        things.upsert(range(20), dict.fromkeys(names, x_ND[:20]), [{"n": n} for n in range(20)])
    return folder


@pytest.fixture(scope="module")
def url(folder):
    with serving(folder, read_only=True) as server:
        yield server.url


@pytest.fixture(scope="module")
def frozen(folder, tmp_path_factory) -> str:
    with qinco.Collection.open(folder / "docs.qinco", read_only=True) as docs:
        return qinco.page.write_page(docs, tmp_path_factory.mktemp("page") / "docs.html").as_uri()


@pytest.fixture
def opened(pages):
    """A function that opens an address; in the end no script has failed and nothing was asked of another origin."""

    def open_page(address, scheme="light", width=1280):
        page = pages.open(address, scheme, width)
        page.wait_for_selector("h2")
        return page

    yield open_page
    assert all(urlsplit(one)[:2] == urlsplit(of)[:2] for of, one in pages.asked)


@pytest.mark.parametrize(("scheme", "width"), VIEWS)
@pytest.mark.parametrize("kind", ["served", "frozen"])
def test_every_view_is_accessible_and_fits(opened, url, frozen, kind, scheme, width):
    page = opened(url if kind == "served" else frozen, scheme, width)
    violations = axe.Axe().run(page).response["violations"]
    assert [one["id"] for one in violations if one["impact"] in ("serious", "critical")] == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.locator("canvas").count() == 2  # errors and sizes of lists


def facts_of(page) -> dict:
    return dict(zip(page.locator("dt").all_inner_texts(), page.locator("dd").all_inner_texts(), strict=True))


def test_numbers_are_shown(opened, url):
    page = opened(f"{url}/#docs")
    facts = facts_of(page)
    assert facts["Records"] == "1,202" and facts["Compressed"] == "1,200" and facts["Kept exactly"] == "2"
    page.locator("nav a", has_text="new").click()
    page.wait_for_selector("h1:has-text('new')")
    assert page.locator("dd").first.inner_text() == "0"


@pytest.mark.parametrize("kind", ["served", "frozen"])
def test_recall_and_times_are_shown(opened, url, frozen, folder, kind):
    with qinco.Collection.open(folder / "docs.qinco", read_only=True) as docs:
        found = docs.stats()["recall"]
    page = opened(f"{url}/#docs" if kind == "served" else frozen)
    facts, latency = facts_of(page), found["latency"]
    assert float(facts["Recall@10"]) == pytest.approx(found["recall"], rel=0.01) and facts["Queries"] == "100"
    for name, time_ in (("A query alone takes", "microseconds"),
                        ("A query in a batch of 100 takes", "batch_microseconds")):  # fmt: skip
        number, unit = facts[name].split()
        assert unit == "µs" and float(number) == pytest.approx(latency[time_], rel=0.01)
    assert (facts["Threads"], facts["Machine"]) == (str(latency["threads"]), latency["machine"])


def test_times_of_an_older_collection_are_not_measured(opened, url):
    facts = facts_of(opened(f"{url}/#old"))
    assert facts["A query alone takes"] == facts["A query in a batch takes"] == "not measured"
    assert "Recall@10" in facts and "Machine" not in facts


@pytest.mark.parametrize("kind", ["served", "frozen"])
def test_a_payload_is_text(opened, url, frozen, kind):
    page = opened(f"{url}/#docs" if kind == "served" else frozen)
    if kind == "served":
        page.get_by_label("Id of a record").fill(HOSTILE)
        page.get_by_role("button", name="Search").click()
        page.wait_for_selector("td.payload")
    assert HOSTILE in page.locator("main").inner_text().replace('\\"', '"')
    assert page.locator("main img, main b").count() == 0 and page.title() == "docs – qinco"


def test_search_with_the_keyboard(opened, url):
    page = opened(f"{url}/#docs")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.get_by_label("Id of a record").focus()
    page.keyboard.type("7")
    page.keyboard.press("Tab")
    page.keyboard.type('{"year": 2000}')
    page.keyboard.press("Enter")
    page.wait_for_selector("td.payload")
    assert all('"year":2000' in text for text in page.locator("td.payload").all_inner_texts())
    page.get_by_role("button", name="Random record").press("Enter")
    page.get_by_label("Filter").fill("{")
    page.get_by_role("button", name="Search").press("Enter")
    assert page.get_by_role("alert").inner_text() == "The filter is no JSON object."


def test_vectors_of_each_name_are_shown(opened, url):
    page = opened(f"{url}/#docs")
    page.locator("nav a", has_text="things.a/b").click()
    page.wait_for_selector("h1:has-text('things.a/b')")
    assert page.locator("dd").first.inner_text() == "20" and "l2" in page.locator("dl").first.inner_text()
    page.get_by_role("button", name="Random record").click()
    page.wait_for_selector("td.payload")
    assert page.locator("nav a", has_text="things.<i>c").count() == 1


def test_an_id_is_found_as_it_is_typed(opened, url):
    page = opened(f"{url}/#docs")
    for typed, found in (("7", "7"), ("42", "42"), ('"42"', "42")):  # the last is a string of digits
        page.get_by_label("Id of a record").fill(typed)
        page.get_by_role("button", name="Search").click()
        page.wait_for_selector(f"caption:has-text('nearest to {found}')")


def test_a_key_for_reading_is_enough(browser, folder):
    with serving(folder, read_only=True, api_key="k" * 20, read_only_api_key="r" * 20) as server:
        for password, status in (("wrong", 401), ("r" * 20, 200)):
            with browser.new_context(http_credentials={"username": "reader", "password": password}) as context:
                page = context.new_page()
                assert page.goto(server.url).status == status
                if status == 200:
                    page.get_by_role("button", name="Random record").click()
                    page.wait_for_selector("td.payload")
