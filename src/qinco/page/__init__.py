"""A page that shows collections, for browsers: served by `qinco serve`, or frozen into one file by `write_page`."""

from qinco.page.data import collection_data
from qinco.page.html import ASSETS, render_page, write_page

__all__ = ["ASSETS", "collection_data", "render_page", "write_page"]
