import sys

import pytest

from qinco.errors import ConfigError
from qinco.search.measure.plot import check_plot_path, plot_fronts

FRONTS = {
    "qinco": [(60.0, 0.30), (400.0, 0.42), (500.0, 0.40), (2000.0, 0.45)],
    "IVF-PQ": [(61.0, 0.25), (139.0, 0.32)],
}


@pytest.mark.parametrize(
    ("name", "remedy"),
    [("front", ".svg"), ("front.pdf", ".svg"), ("front.svg.gz", ".svg"), ("front.png", "qinco.plot"),
     ("FRONT.SVG", "qinco.plot")],
)  # fmt: skip
def test_another_suffix_and_a_missing_package_are_refused(monkeypatch, name, remedy):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=f"{name} .*{remedy}"):
        check_plot_path(name)


class TestDrawn:
    @pytest.fixture(autouse=True)
    def _matplotlib(self):
        pytest.importorskip("matplotlib")

    def test_a_png_is_an_image_of_more_than_one_colour(self, tmp_path):
        plot_fronts(tmp_path / "front.PNG", FRONTS)
        from matplotlib.image import imread

        pixels = imread(tmp_path / "front.PNG", format="png")
        assert pixels.shape == (750, 1200, 4) and len({tuple(pixel) for pixel in pixels[::5, ::5].reshape(-1, 4)}) > 3

    def test_the_same_points_give_the_same_svg(self, tmp_path):
        for name in ("a.svg", "b.svg"):
            plot_fronts(tmp_path / name, FRONTS | {"_a $x_$ b": FRONTS["qinco"], "empty": []}, r"$\frac$")
        text = (tmp_path / "a.svg").read_text()
        assert text == (tmp_path / "b.svg").read_text()
        for shown in ("qinco", "IVF-PQ", "_a $x_$ b", "empty", r"$\frac$", "microseconds per query", "recall@1"):
            assert f"<!-- {shown} -->" in text
        plot_fronts(tmp_path / "b.svg", FRONTS | {"IVF-PQ": [(61.0, 0.26)]})
        assert text != (tmp_path / "b.svg").read_text()

    def test_users_settings_and_global_state_are_left_alone(self, tmp_path, monkeypatch):
        import matplotlib

        monkeypatch.setitem(matplotlib.rcParams, "svg.hashsalt", "theirs")
        monkeypatch.setitem(matplotlib.rcParams, "font.family", ["serif"])
        plot_fronts(tmp_path / "front.svg", FRONTS)
        assert matplotlib.rcParams["svg.hashsalt"] == "theirs" and matplotlib.rcParams["font.family"] == ["serif"]
        assert "matplotlib.pyplot" not in sys.modules
