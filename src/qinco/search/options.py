"""Options of one search of an index."""

from dataclasses import dataclass

from qinco.config import MAX_LISTS, accepts_keys, check_fields, option, require_int
from qinco.errors import ConfigError

MAX_SHORTLIST = (1 << 31) - 1


@dataclass(frozen=True)
class SearchOptions:
    """How many vectors each stage of a search passes on (QINCo2 paper, section 4).

    Attributes:
        nprobe: Inverted lists that are scanned (all where there are fewer).
        num_short: S, vectors that the network decodes at most; 0 for no neural re-ranking.
        num_mid: Length of the look-up shortlist from which the pairwise decoder chooses the num_short vectors; with
            num_short=0 its order is the final one. 0 for no pairwise stage; None for a fitted length if the index has
            a pairwise decoder.
        ef_search: Effort of the graph (HNSW) that finds the lists; fitted to nprobe if None.
    """

    nprobe: int = option(16, key="nprobe", help="inverted lists that are scanned", maximum=MAX_LISTS)
    num_short: int = option(100, key="nshort", help="vectors that the network decodes at most", minimum=0,
                            maximum=MAX_SHORTLIST)  # fmt: skip
    num_mid: int | None = option(None, key="nmid_short", help="vectors that the pairwise decoder decodes, in multiples "
                                 "of nshort; 0 or 1: none", minimum=0, maximum=MAX_SHORTLIST)  # fmt: skip
    ef_search: int | None = option(None, key="quantizer_efSearch", help="effort of the graph that finds lists",
                                   maximum=MAX_SHORTLIST)  # fmt: skip

    def __post_init__(self):
        check_fields(self)
        if self.num_mid is not None and 0 < self.num_mid < self.num_short:
            raise ConfigError(
                f"num_mid (nmid_short) must be 0 or at least num_short (nshort), which is {self.num_short}, not "
                f"{self.num_mid}: the pairwise decoder chooses num_short of num_mid vectors"
            )

    @staticmethod
    def from_multiples(nprobe: int, quantizer_efSearch: int, nshort: int, nmid_short: int) -> "SearchOptions":
        """Options from those of the papers: nmid_short is a multiple of nshort, 0 or 1 for no pairwise stage."""
        require_int("num_short (nshort)", nshort, 0, MAX_SHORTLIST)
        require_int("num_mid (nmid_short)", nmid_short, 0, MAX_SHORTLIST)
        num_mid = nmid_short * nshort
        return SearchOptions(nprobe, nshort, num_mid if num_mid > nshort else 0, quantizer_efSearch)


SearchOptions.__init__ = accepts_keys(SearchOptions)(SearchOptions.__init__)
