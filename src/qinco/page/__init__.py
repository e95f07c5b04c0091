"""A page that shows collections, for browsers: served by `qinco serve`, or frozen into one file by `write_page`."""

from qinco.page.data import collection_data, neighbours, shown
from qinco.page.html import ASSETS, render_page, write_page

__all__ = ["ASSETS", "collection_data", "neighbours", "render_page", "shown", "write_page"]
