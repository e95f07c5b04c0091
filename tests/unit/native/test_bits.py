"""Ids to bits over positions, compiled and by numpy; bits and masks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from native_levels import needs_native

from qinco.native import bits as module
from qinco.native.bits import count_bits, mark_ids, packed, positions, unpacked

LAST = 2**63 - 1


@pytest.fixture(params=[pytest.param(True, marks=needs_native, id="native"), pytest.param(False, id="numpy")])
def marked(request, monkeypatch):
    if not request.param:
        monkeypatch.setattr(module, "compiled", lambda: None)

    def masks(chosen, parts):
        found = mark_ids(np.array(chosen, np.int64), parts)
        assert all(count_bits(words) == count for words, count in found)
        return [unpacked(words, 0, len(ids)).tolist() for (words, _), ids in zip(found, parts, strict=True)]

    return masks


@pytest.mark.parametrize(
    "chosen",
    [
        [], [7], [-1], [5, 3, 5, 900, -1], [LAST, -LAST - 1, 0], [2**40, 2**62, 3, 3], [*range(0, 3000, 3)],
        [*range(-500, 500)], [2**32, 2**32 - 1], [number * 2**35 for number in range(-99, 100)], [0],
    ],
    ids=lambda chosen: str(chosen)[:20],
)  # fmt: skip
@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 1000])
def test_positions_whose_id_is_chosen(marked, chosen, count):
    narrow = np.random.default_rng(0).permutation(count).astype(np.uint32)
    wide = narrow.astype(np.int64) * (1 << 35) - 3
    ends = np.array([LAST, -LAST - 1, 2**40, 2**62, -2, 3], np.int64)[:count]
    largest = np.array([2**32 - 1], np.uint32)
    parts, wanted = [narrow, wide, ends, largest], set(chosen) - {-1}
    assert marked(chosen, parts) == [[number in wanted for number in ids.tolist()] for ids in parts]


def test_ids_of_any_layout(marked):
    ids = np.arange(200, dtype=np.uint32)
    assert marked(range(50, 100), [ids[::2], ids[::-1], ids[:0]]) == [
        [50 <= number < 100 for number in part.tolist()] for part in (ids[::2], ids[::-1], ids[:0])
    ]
    assert mark_ids(np.arange(9), []) == []


@given(size=st.integers(0, 300), share=st.sampled_from([0, 0.01, 0.5, 1]), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=60)
def test_bits_are_those_of_the_mask(size, share, seed):
    random = np.random.default_rng(seed)
    mask_N = random.random(size) < share
    words = packed(mask_N)
    assert words.dtype == np.uint64 and len(words) == -(-size // 64) and count_bits(words) == mask_N.sum()
    assert [words[place // 64].item() >> place % 64 & 1 for place in range(size)] == mask_N.tolist()
    assert np.array_equal(positions(words), np.flatnonzero(mask_N)) and positions(words).dtype == np.int64
    start, stop = sorted(random.integers(0, size + 1, 2).tolist())
    assert np.array_equal(unpacked(words, start, stop), mask_N[start:stop])
