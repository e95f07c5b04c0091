"""The papers' figures, as data: which sets, codes and models they are of, and what the papers found.

Mean squared errors are in the papers' units (1e-4 of ours for BigANN and FB-ssnpp); recall@1 is in percent, among a
million vectors. The paper has no figures of UNQ for the last two sets.
"""

from dataclasses import dataclass, field

from qinco.config import EncodeOptions

DATA_SETS = {"bigann1M": "BigANN", "deep1M": "Deep", "contriever1M": "Contriever", "FB_ssnpp1M": "FB-ssnpp"}
SIZES = (8, 16)


@dataclass(frozen=True)
class Table:
    """A table of a paper: figures of others by method, and what is measured here.

    `figures` are (MSE, R@1) for 8 and 16 bytes of each data set, in the order of DATA_SETS.
    """

    title: str
    method: str
    model: str  # published checkpoint; {set}, {size} and {blocks} differ by data set
    preset: str  # what is trained with models=train
    figures: dict[str, tuple[tuple[float, float], ...]]
    options: EncodeOptions | None = None  # of encoding; the checkpoint's own if None
    sets: dict[str, tuple[str, int]] = field(default_factory=dict)  # other names of data sets in `model`, and L
    note: str = ""

    def paper(self, method: str, data_set: str, size: int) -> tuple[float, float] | None:
        """MSE and R@1 that the paper gives, if it does."""
        row = self.figures.get(method)
        place = len(SIZES) * list(DATA_SETS).index(data_set) + SIZES.index(size)
        return row[place] if row is not None and place < len(row) else None

    def checkpoint(self, data_set: str, size: int) -> str:
        """The name of the published model."""
        name, blocks = self.sets.get(data_set, (data_set, 0))
        return self.model.format(set=name, size=size, blocks=blocks)


# Columns: BigANN 8 and 16 bytes, Deep 8 and 16, Contriever 8 and 16, FB-ssnpp 8 and 16
_MSE = {
    "OPQ": (2.95, 1.79, 0.26, 0.14, 1.87, 1.71, 9.52, 7.25),
    "RQ": (2.49, 1.30, 0.20, 0.10, 1.82, 1.65, 9.20, 7.01),
    "LSQ": (1.91, 0.98, 0.17, 0.09, 1.65, 1.35, 8.87, 6.63),
    "UNQ": (1.51, 0.57, 0.16, 0.07),
    "QINCo": (1.12, 0.32, 0.12, 0.05, 1.40, 1.10, 8.67, 6.58),
}
_RECALL = {
    "OPQ": (21.9, 40.5, 15.9, 34.9, 8.0, 18.3, 2.5, 5.0),
    "RQ": (27.9, 49.0, 21.4, 43.0, 10.2, 20.2, 2.7, 5.4),
    "LSQ": (31.9, 51.1, 24.6, 42.3, 13.1, 25.6, 3.3, 6.2),
    "UNQ": (34.6, 59.3, 26.7, 47.9),
    "QINCo": (45.2, 71.9, 36.3, 59.8, 20.7, 31.1, 3.6, 6.4),
}
_QINCO = {method: tuple(zip(_MSE[method], _RECALL[method], strict=True)) for method in _MSE}
TABLES = {
    "1": Table(
        "QINCo (arXiv 2401.14732), Table 1: trained on 10 million vectors",
        "QINCo", "{set}_{size}x8_L{blocks}", "qinco1", _QINCO,
        sets={"bigann1M": ("bigann", 16), "deep1M": ("deep", 16), "contriever1M": ("Contriever", 12),
              "FB_ssnpp1M": ("FB_ssnpp", 16)},
    ),
    "qinco2": Table(
        "QINCo2 (arXiv 2501.03078): the larger model, beside QINCo's table",
        "QINCo2-L", "qinco2_L-{set}-{size}x8", "qinco2-L", _QINCO, EncodeOptions(num_candidates=32, beam_width=64),
        note="Its abstract claims an MSE 34 % lower than the best before for 16 bytes of BigANN, and 24 % more R@1 for "
             "8 bytes of Deep.",
    ),
}  # fmt: skip
