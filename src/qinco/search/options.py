"""How an index is searched: the settings of one call, as `ModelConfig` and `EncodeOptions` are of theirs."""

from dataclasses import dataclass

from qinco.config import MAX_LISTS, require_int
from qinco.errors import ConfigError

_MOST = (1 << 31) - 1


@dataclass(frozen=True)
class SearchOptions:
    """The stages of a search (QINCo2 paper, section 3.3) and how many vectors each passes on.

    nprobe:    P, inverted lists that are scanned; all where there are fewer
    num_short: S, vectors that the network decodes; 0 for no neural re-ranking
    num_mid:   length of the look-up shortlist from which the pairwise decoder chooses the num_short; with num_short=0
               its order is the final one. 0 for no pairwise stage; None for a fitted length where there is a decoder.
    ef_search: effort of the search for lists where that goes through a graph (HNSW); fitted to nprobe if None

    Raises ConfigError for a value out of its range.
    """

    nprobe: int = 16
    num_short: int = 100
    num_mid: int | None = None
    ef_search: int | None = None

    def __post_init__(self):
        require_int("nprobe", self.nprobe, 1, MAX_LISTS)
        require_int("num_short (nshort)", self.num_short, 0, _MOST)
        if self.num_mid is not None:
            require_int("num_mid (nmid_short)", self.num_mid, 0, _MOST)
            if 0 < self.num_mid < self.num_short:
                raise ConfigError(
                    f"num_mid (nmid_short) must be 0 or at least num_short (nshort), which is {self.num_short}, not "
                    f"{self.num_mid}: the pairwise decoder chooses num_short of num_mid vectors"
                )
        if self.ef_search is not None:
            require_int("ef_search (quantizer_efSearch)", self.ef_search, 1, _MOST)
        for name in ("nprobe", "num_short", "num_mid", "ef_search"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, int(getattr(self, name)))

    @staticmethod
    def from_multiples(nprobe: int, quantizer_efSearch: int, nshort: int, nmid_short: int) -> "SearchOptions":
        """The options that the command line's values stand for; nmid_short is in multiples of nshort.

        There is no pairwise stage for a multiple of 0 or 1, from which it could choose nothing.
        """
        require_int("num_short (nshort)", nshort, 0, _MOST)
        require_int("num_mid (nmid_short)", nmid_short, 0, _MOST)
        num_mid = nmid_short * nshort
        return SearchOptions(nprobe, nshort, num_mid if num_mid > nshort else 0, quantizer_efSearch)
