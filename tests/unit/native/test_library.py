"""The compiled engine on arrays made by hand, against a few lines of numpy."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from ctypes.util import find_library
from dataclasses import replace
from threading import Timer, main_thread
from types import SimpleNamespace

import numpy as np
import pytest
from native_levels import needs_native, normal

from qinco.errors import ConfigError, ResourceError
from qinco.native import library
from qinco.native.library import NativeModel, Sizes, StepArrays

pytestmark = needs_native


def bare(dim=5, size=8, seed=0) -> tuple[Sizes, list[StepArrays]]:
    """One step without a network: a codebook."""
    sizes = Sizes(dim, dim, 3, 0, size, 1, skip=True, first_is_bare=True, bf16=False)
    return sizes, [StepArrays(normal(size, dim, seed=seed))]


def conditioned(steps=2, dim=5, size=8, hidden=6) -> tuple[Sizes, list[StepArrays]]:
    """Steps with one block each and every codeword a candidate, from a start; small weights keep values near one."""
    sizes = Sizes(dim, dim, hidden, 1, size, steps, skip=True, first_is_bare=False, bf16=False)
    shapes = [(size, dim), (size, dim), (size, hidden), (dim, dim), (hidden, dim), (hidden, dim), (dim, hidden)]
    arrays = []
    for m in range(steps):
        c, stream, hidden_table, stream_x, hidden_x, up, down = (
            normal(*shape, seed=10 * m + i) * 0.3 for i, shape in enumerate(shapes)
        )
        arrays.append(StepArrays(c, None, stream, hidden_table, stream_x, hidden_x, (up,), (down,)))
    return sizes, arrays


def after_bare() -> tuple[Sizes, list[StepArrays]]:
    """A bare step and one with a network and a pre-selector."""
    sizes, (_, step) = conditioned()
    first, second = normal(8, 5, seed=7), replace(step, preselector=normal(8, 5, seed=8))
    second = replace(second, first_cross=first @ second.preselector.T)
    sizes.first_is_bare = True
    return sizes, [StepArrays(first), second]


def outputs(step: StepArrays, x_D: np.ndarray) -> np.ndarray:
    """f(c, x̂) of all codewords: (K, D)."""
    hidden_KH = np.maximum(step.hidden_table + step.hidden_x @ x_D, 0)
    return step.codebook + step.stream_table + step.stream_x @ x_D + hidden_KH @ step.down[0].T


def encode(model: NativeModel, x_ND, start_ND=None, *, beam=1, steps=None, threads=1, pairs=None, candidates=None):
    return model.encode(
        x_ND, start_ND, num_candidates=candidates, num_pairs=pairs, beam_width=beam,
        num_steps=steps or model.sizes.steps, threads=threads,
    )  # fmt: skip


def test_a_bare_codebook_gives_the_nearest_codeword(level):
    sizes, (step,) = bare()
    x_ND, start_ND = normal(40, 5, seed=1), normal(40, 5, seed=2)
    model = NativeModel(sizes, [step])
    codes_NM, reached_ND = encode(model, x_ND, start_ND)
    squares_NK = np.square((x_ND - start_ND)[:, None] - step.codebook).sum(2)
    assert codes_NM.dtype == np.uint16 and codes_NM.shape == (40, 1)
    assert np.array_equal(codes_NM[:, 0], squares_NK.argmin(1))
    assert np.array_equal(reached_ND, start_ND + step.codebook[codes_NM[:, 0]])
    assert np.array_equal(model.decode(codes_NM, start_ND, threads=1), reached_ND)


def test_a_network_is_searched_greedily_and_decoded(level):
    sizes, steps = conditioned()
    x_ND, start_ND = normal(50, 5, seed=3), normal(50, 5, seed=4)
    wanted_NM, wanted_ND = np.empty((50, 2), int), start_ND.copy()
    for n in range(50):
        for m, step in enumerate(steps):
            f_KD = outputs(step, wanted_ND[n])
            wanted_NM[n, m] = np.square(x_ND[n] - wanted_ND[n] - f_KD).sum(1).argmin()
            wanted_ND[n] += f_KD[wanted_NM[n, m]]
    model = NativeModel(sizes, steps)
    codes_NM, reached_ND = encode(model, x_ND, start_ND)
    assert np.array_equal(codes_NM, wanted_NM)
    np.testing.assert_allclose(reached_ND, wanted_ND, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(model.decode(codes_NM, start_ND, threads=1), wanted_ND, rtol=1e-5, atol=1e-5)


def test_ties_go_to_the_first_codeword_and_the_first_hypothesis(level):
    sizes, steps = conditioned()
    steps = [StepArrays(*(None if a is None else tuple(0 * b for b in a) if isinstance(a, tuple) else 0 * a
                          for a in vars(step).values())) for step in steps]  # fmt: skip
    codes_NM, _ = encode(NativeModel(sizes, steps), normal(9, 5), beam=8)
    assert not codes_NM.any()


def test_no_start_is_a_start_at_zero(level):
    model = NativeModel(*conditioned())
    x_ND = normal(7, 5)
    for ours, theirs in zip(encode(model, x_ND), encode(model, x_ND, np.zeros_like(x_ND)), strict=True):
        assert np.array_equal(ours, theirs)
    codes_NM, _ = encode(model, x_ND)
    assert np.array_equal(model.decode(codes_NM, None, threads=1), model.decode(codes_NM, 0 * x_ND, threads=1))


@pytest.mark.parametrize("threads", [0, 1, 2, 3, 7, 40])
def test_any_number_of_threads_gives_the_same_bits(level, threads):
    model = NativeModel(*conditioned())
    x_ND = normal(700, 5)
    wanted_NM, wanted_ND = encode(model, x_ND, beam=4)
    codes_NM, reached_ND = encode(model, x_ND, beam=4, threads=threads)
    assert np.array_equal(codes_NM, wanted_NM) and np.array_equal(reached_ND, wanted_ND)
    decoded_ND = model.decode(codes_NM, None, threads=threads)
    assert np.array_equal(decoded_ND, model.decode(codes_NM, None, threads=1))


def test_threads_of_the_caller_share_a_model(level):
    """Also while it fills the tables that it fills once it has been used enough."""
    model, x_ND = NativeModel(*after_bare()), normal(400, 5)
    wanted = encode(NativeModel(*after_bare()), x_ND, pairs=6, beam=4)
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(encode, model, x_ND, pairs=6, beam=4, threads=2) for _ in range(12)]
    for call in calls:
        assert all(map(np.array_equal, call.result(), wanted))


def test_no_vectors_have_no_codes(level):
    model = NativeModel(*conditioned())
    codes_NM, reached_ND = encode(model, np.empty((0, 5), np.float32), beam=3, threads=2)
    assert codes_NM.shape == (0, 2) and reached_ND.shape == (0, 5)
    assert model.decode(codes_NM, None, threads=2).shape == (0, 5)


def test_arrays_of_any_layout_and_type_are_taken(level):
    model = NativeModel(*conditioned())
    x_ND = normal(20, 5)
    wanted_NM, reached_ND = encode(model, x_ND, x_ND * 0.5, beam=2)
    fortran_ND, strided_ND = np.asfortranarray(x_ND), np.repeat(x_ND, 2, 0)[::2]
    for given_ND in (fortran_ND, strided_ND, x_ND.astype(np.float64)):
        codes_NM, _ = encode(model, given_ND, given_ND * np.float32(0.5), beam=2)
        assert np.array_equal(codes_NM, wanted_NM)
    decoded_ND = model.decode(wanted_NM, x_ND * 0.5, threads=1)
    np.testing.assert_allclose(decoded_ND, reached_ND, rtol=1e-5, atol=1e-5)
    for dtype in (np.uint8, np.int32, np.int64):
        assert np.array_equal(model.decode(wanted_NM.astype(dtype), x_ND * 0.5, threads=1), decoded_ND)
    assert np.array_equal(model.decode(np.asfortranarray(wanted_NM), fortran_ND * 0.5, threads=1), decoded_ND)


def test_a_packed_model_keeps_its_own_copy(level):
    sizes, steps = conditioned()
    model, x_ND = NativeModel(sizes, steps), normal(20, 5)
    before = encode(model, x_ND)
    for step in steps:
        step.codebook[:], step.stream_x[:], step.down[0][:] = 7, 8, 9
    for ours, theirs in zip(before, encode(model, x_ND), strict=True):
        assert np.array_equal(ours, theirs)


def test_arrays_of_a_wrong_shape_are_refused():
    sizes, (step,) = bare()
    with pytest.raises(AssertionError):
        NativeModel(sizes, [StepArrays(step.codebook[:, :-1])])
    with pytest.raises(AssertionError):
        encode(NativeModel(sizes, [step]), normal(3, 4))


def test_the_level_can_be_lowered_and_not_raised(monkeypatch):
    monkeypatch.delenv("QINCO_NATIVE_LEVEL", raising=False)
    best = library.level()
    assert best in library.LEVELS
    for name in library.LEVELS[: library.LEVELS.index(best) + 1]:
        monkeypatch.setenv("QINCO_NATIVE_LEVEL", name)
        assert library.level() == name
    for name in ("sse2", "", *library.LEVELS[library.LEVELS.index(best) + 1 :]):
        monkeypatch.setenv("QINCO_NATIVE_LEVEL", name)
        with pytest.raises(ConfigError, match=f"QINCO_NATIVE_LEVEL={name}: this processor has portable"):
            library.level()


def test_without_its_library_the_engine_is_not_available(tmp_path):
    code = "from qinco.native import library; print(library.is_available())"
    for path in (tmp_path / "missing.so", __file__, find_library("m")):  # the last is a library of another interface
        environment = os.environ | {"QINCO_NATIVE_LIBRARY": str(path)}
        ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        assert ran.stdout == "False\n" and ("another version" in ran.stderr) == (path == find_library("m"))


def test_rules_beyond_all_bounds_are_not_wrapped_around(monkeypatch):
    """A beam of 2³² + 1 hypotheses is no beam of one."""
    model, seen = NativeModel(*bare()), []
    spy = SimpleNamespace(
        qinco_encode=lambda engine, search, *_: seen.append(search._obj) or 0, qinco_watch=lambda python: None
    )  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(library, "compiled", lambda: spy)
        encode(model, normal(3, 5), beam=2**32 + 1, pairs=2**31)
        encode(model, normal(3, 5), beam=2**31, candidates=2**32)
    assert all(search.beam >= 1 << 30 for search in seen)
    assert seen[0].pairs >= 1 << 30 and seen[1].candidates >= 1 << 30


def test_exhausted_memory_is_a_resource_error(monkeypatch):
    model, x_ND = NativeModel(*bare()), normal(3, 5)
    exhausted = SimpleNamespace(
        qinco_level=lambda: 0,
        qinco_create=lambda *_: None,
        qinco_encode=lambda *_: 1,
        qinco_decode=lambda *_: 1,
    )
    with monkeypatch.context() as patch:
        patch.setattr(library, "compiled", lambda: exhausted)
        patch.delenv("QINCO_NATIVE_LEVEL", raising=False)
        with pytest.raises(ResourceError, match="packed"):
            NativeModel(*bare())
        with pytest.raises(ResourceError, match="smaller beam"):
            encode(model, x_ND)
        with pytest.raises(ResourceError, match="memory"):
            model.decode(np.zeros((3, 1), np.uint16), None, threads=1)


@needs_native
@pytest.mark.parametrize("threads", [1, 3])
def test_ctrl_c_ends_calls_that_would_take_hours(threads):
    rows, tall = 1 << 15, 2048
    sizes, arrays = conditioned(steps=8, dim=4, size=256, hidden=tall)
    model, x, codes = NativeModel(sizes, arrays), normal(rows, 4), np.zeros((100 * rows, 8), np.uint16)
    search = {"num_candidates": None, "num_pairs": None, "beam_width": 64, "num_steps": 8, "threads": threads}
    before = model.encode(x[:1], None, **search)
    for call in (lambda: model.encode(x, None, **search), lambda: model.decode(codes, None, threads=threads)):
        Timer(0.1, signal.pthread_kill, (main_thread().ident, signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            call()
    for one, other in zip(before, model.encode(x[:1], None, **search), strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize("is_raising", [False, True])
def test_handlers_of_any_signal_run_within_a_call(is_raising):
    came, before = [], signal.getsignal(signal.SIGUSR1)
    model, codes = NativeModel(*conditioned(steps=4, dim=4, size=256, hidden=512)), np.zeros((20_000, 4), np.uint16)

    def handle(number, frame):
        came.append(number)
        if is_raising:
            raise TimeoutError("too slow")

    signal.signal(signal.SIGUSR1, handle)
    try:
        Timer(0.02, signal.pthread_kill, (main_thread().ident, signal.SIGUSR1)).start()
        if is_raising:
            with pytest.raises(TimeoutError, match="too slow"):
                while True:
                    model.decode(codes, None, threads=2)
        else:
            while not came:
                decoded = model.decode(codes, None, threads=2)
            assert np.array_equal(decoded, model.decode(codes[:1], None, threads=1).repeat(20_000, 0))
    finally:
        signal.signal(signal.SIGUSR1, before)
