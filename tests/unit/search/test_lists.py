import numpy as np
import pytest
from small_lists import lists_of

from qinco.errors import DataError
from qinco.search.lists import InvertedLists, ListsBuilder, id_dtype

M = 3


def vectors(count, num_lists, seed=0):
    """Codes, norm_codes, lists and ids of vectors at random."""
    generator = np.random.default_rng(seed)
    codes = generator.integers(0, 256, (count, M), dtype=np.uint8)
    return codes, codes[:, 0] ^ 255, generator.integers(0, num_lists, count, dtype=np.int32), np.arange(count) * 10


def make(count, num_lists, seed=0):
    return lists_of(*vectors(count, num_lists, seed), num_lists)


def same(one: InvertedLists, other: InvertedLists) -> bool:
    arrays = [(getattr(one, name), getattr(other, name)) for name in ("starts", "codes", "ids")]
    return all(np.array_equal(*pair) and pair[0].dtype == pair[1].dtype for pair in arrays)


def test_the_bytes_of_a_few_vectors():
    codes = np.array([[1, 2], [3, 4], [5, 6]], np.uint8)
    lists = lists_of(codes, np.array([7, 8, 9], np.uint8), np.array([2, 0, 2]), np.array([70, 80, 90]), 3)
    assert lists.starts.tolist() == [0, 1, 1, 3]
    assert lists.codes.tolist() == [3, 4, 8, *(1, 5), *(2, 6), *(7, 9)]
    assert lists.ids.tolist() == [80, 70, 90]
    assert (len(lists), lists.num_lists, lists.num_codes, lists.nbytes) == (3, 3, 2, 9 + 3 * 4 + 4 * 8)


def test_a_list_is_cut_into_blocks_of_64():
    codes, norm_codes, _, ids = vectors(150, 1)
    lists = lists_of(codes, norm_codes, np.zeros(150, int), ids, 1)
    begin = 0
    for rows in (slice(0, 64), slice(64, 128), slice(128, 150)):
        width = rows.stop - rows.start
        block = lists.codes[begin : begin + (M + 1) * width].reshape(M + 1, width)
        assert np.array_equal(block[:M].T, codes[rows]) and np.array_equal(block[M], norm_codes[rows])
        begin += block.size
    assert begin == len(lists.codes)


def test_more_lists_than_16_bits_count():
    numbers = np.array([1 << 17, 1, 65536, 65537, 1 << 17, 65536], np.int32)
    codes, norm_codes, _, ids = vectors(6, 1)
    lists = lists_of(codes, norm_codes, numbers, ids, (1 << 17) + 1)
    assert lists.ids.tolist() == [10, 20, 50, 30, 0, 40]
    assert lists.lists_of(np.arange(6)).tolist() == sorted(numbers)


@pytest.mark.parametrize(
    ("ids", "dtype"),
    [([], np.uint32), ([0, (1 << 32) - 1], np.uint32), ([0, 1 << 32], np.int64), ([-1, 5], np.int64)],
)
def test_ids_take_no_more_bytes_than_they_need(ids, dtype):
    ids = np.array(ids, np.int64)
    assert id_dtype(ids) == dtype
    codes, norm_codes, numbers, _ = vectors(len(ids), 1)
    lists = lists_of(codes, norm_codes, numbers, ids, 1)
    assert lists.ids.dtype == dtype and np.array_equal(lists.ids, ids)


def test_nothing_can_be_changed():
    lists = make(10, 2)
    for array in (lists.starts, lists.codes, lists.ids, next(lists.blocks())[3]):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
    with pytest.raises(AttributeError):
        lists.ids = None


def test_one_large_id_among_merged_lists_makes_all_of_them_wide():
    codes, norm_codes, numbers, ids = vectors(10, 5)
    wide = lists_of(codes, norm_codes, numbers, ids - (1 << 40), 5)
    assert InvertedLists.merged([make(10, 5), wide]).ids.dtype == np.int64
    merged = InvertedLists.merged([make(10, 5), wide])
    assert same(merged.without(np.flatnonzero(merged.ids < 0)), make(10, 5))


def test_a_builder_fills_memory_maps_block_by_block(tmp_path):
    codes, norm_codes, numbers, ids = vectors(1000, 9)
    builder = ListsBuilder(9, M)
    for rows in (slice(300, 1000), slice(0, 300)):
        builder.add_counts(numbers[rows])

    def create(name, dtype, shape):
        return np.lib.format.open_memmap(tmp_path / f"{name}.npy", "w+", dtype, shape)

    builder.allocate(id_dtype(ids), create)
    for start in range(0, 1000, 170):
        rows = slice(start, start + 170)
        builder.fill(codes[rows], norm_codes[rows], numbers[rows], ids[rows])
    lists = builder.finish()
    assert same(lists, make(1000, 9))
    assert np.array_equal(np.load(tmp_path / "codes.npy"), lists.codes)
    assert np.array_equal(np.load(tmp_path / "ids.npy"), lists.ids)


@pytest.mark.parametrize(("rows", "tile"), [(1, 1), (64, 7), (333, 100)])
def test_blocks_of_the_work_do_not_show(rows, tile):
    assert same(lists_of(*vectors(1000, 9), 9, block_rows=rows, tile=tile), make(1000, 9))


def test_a_builder_notices_other_vectors_than_were_counted():
    codes, norm_codes, numbers, ids = vectors(50, 4)
    builder = ListsBuilder(4, M)
    builder.add_counts(numbers)
    builder.allocate(np.uint32)
    builder.fill(codes[:40], norm_codes[:40], numbers[:40], ids[:40])
    with pytest.raises(AssertionError, match="fewer vectors"):
        builder.finish()
    with pytest.raises(AssertionError, match="more vectors"):
        builder.fill(codes, norm_codes, numbers, ids)
    with pytest.raises(AssertionError, match="does not fit"):
        builder.fill(codes[40:], norm_codes[40:], numbers[40:], ids[40:] - (1 << 40))


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("starts", [1, 3, 4, 5, 10]), ("starts", [0, 3, 4, 5, 11]), ("starts", [0, 3, 4, 10]),
        ("starts", [0.0, 3, 4, 5, 10]), ("codes", np.zeros(41, np.uint8)), ("codes", np.zeros((10, 4), np.uint8)),
        ("codes", np.zeros(40, np.int8)), ("ids", np.zeros(10, np.uint64)), ("ids", np.zeros(9, np.uint32)),
    ],
)  # fmt: skip
def test_arrays_of_a_file_are_not_trusted(name, wrong):
    lists = make(10, 4)
    arrays = {name: getattr(lists, name) for name in ("starts", "codes", "ids")} | {name: np.asarray(wrong)}
    with pytest.raises(DataError, match="x is damaged"):
        InvertedLists.from_stored(**arrays, num_lists=4, num_codes=M, name="x")


def test_addresses_of_more_than_32_bits(tmp_path):
    """In files that are holes but for a few vectors."""
    count = 600_000_000
    codes, norm_codes, _, ids = vectors(200, 1)
    builder = ListsBuilder(2, M)
    builder.counts[:] = 2 * count, 200

    def create(name, dtype, shape):
        return np.memmap(tmp_path / name, dtype, "w+", shape=shape)

    builder.allocate(np.dtype(np.uint32), create)
    builder.fill(codes, norm_codes, np.ones(200, np.int32), ids)
    lists = InvertedLists(builder.starts, builder.codes, builder.ids, M)
    positions = np.arange(2 * count, 2 * count + 200)
    assert np.array_equal(lists.rows(positions)[0], codes) and np.array_equal(lists.rows(positions)[1], norm_codes)
    assert lists.lists_of([0, 2 * count - 1, 2 * count]).tolist() == [0, 0, 1]
    assert not lists.codes[: 1 << 20].any()
