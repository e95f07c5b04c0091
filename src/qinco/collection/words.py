"""Words of texts: runs of letters and digits, in lower case."""

import re
from functools import lru_cache

_WORD = re.compile(r"[^\W_]+")
MATCHES = "all", "any", "phrase"  # of the words of a query: all of them, one, or all one after the other


def words(text: str) -> tuple[str, ...]:
    """The words of a text, in its order.

    Example:
        >>> words("Hello, WORLD-2")
        ('hello', 'world', '2')
    """
    return tuple(word.lower() for word in _WORD.findall(text))


_words_of_query = lru_cache(256)(words)


def has_words(match: str, query: str, text: str) -> bool:
    """Whether a text holds the words of a query; a query without any is in no text."""
    wanted, found = _words_of_query(query), words(text)
    if not wanted:
        return False
    if match == "any":
        return not set(found).isdisjoint(wanted)
    if match == "all":
        return set(found).issuperset(wanted)
    return any(found[start : start + len(wanted)] == wanted for start in range(len(found) - len(wanted) + 1))
