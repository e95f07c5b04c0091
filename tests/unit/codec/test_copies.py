"""Codecs are copied and pickled as other objects are, before and after they have been used."""

import copy
import pickle

import numpy as np
import pytest
from small_indexes import KINDS, trained, vectors

from qinco.native.library import NativeModel, is_available
from qinco.native.scanner import NativeScanner


@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy, lambda codec: pickle.loads(pickle.dumps(codec))])
@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_gives_the_same_and_outlives_the_original(kind, copied):
    codec = copy.deepcopy(trained(kind))
    codes = codec.encode(vectors())  # with what is kept for the next call
    decoded_ND = codec.decode(*(codes if kind == "ivf" else (codes,)))
    other = copied(codec)
    del codec
    again = other.encode(vectors())
    for found, wanted in zip(again if kind == "ivf" else [again], codes if kind == "ivf" else [codes], strict=True):
        assert np.array_equal(found, wanted)
    assert np.array_equal(other.decode(*(codes if kind == "ivf" else (codes,))), decoded_ND)


@pytest.mark.skipif(not is_available(), reason="there are no compiled kernels")
@pytest.mark.parametrize("packed", [NativeModel, NativeScanner])
def test_what_a_process_owns_is_not_copied(packed):
    owner = packed.__new__(packed)
    owner._engine = owner._scanner = None
    for copied in (copy.deepcopy, copy.copy, pickle.dumps):
        with pytest.raises(TypeError, match="belongs to its process and cannot be copied"):
            copied(owner)
