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
    decoded_ND = codec.decode(codes)
    other = copied(codec)
    del codec
    again = other.encode(vectors())
    assert np.array_equal(again, codes) and (kind != "ivf" or np.array_equal(again.lists, codes.lists))
    assert np.array_equal(other.decode(codes), decoded_ND)


@pytest.mark.skipif(not is_available(), reason="there are no compiled kernels")
@pytest.mark.parametrize("packed", [NativeModel, NativeScanner])
def test_what_a_process_owns_is_not_copied(packed):
    owner = packed.__new__(packed)
    owner.engine = owner.scanner = None
    for copied in (copy.deepcopy, copy.copy, pickle.dumps):
        with pytest.raises(TypeError, match="cannot be copied"):
            copied(owner)
