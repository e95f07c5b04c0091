"""An index that is changed and saved over the folder that it maps, by processes that end in the middle of it.

Run as a script with a folder, it ends a save at every single operation on files, as `kill -9` does.
"""

import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parents[1]))

from endings import OF_INDEXES as OPERATIONS
from endings import UNTOLD, count_points, ends_at
from small_models import random_model, random_vectors

from qinco.codec import Codec
from qinco.config import EncodeOptions, ModelConfig
from qinco.search.index import Index

OLD, NEW = np.arange(300), np.r_[50:300, 2**40 : 2**40 + 80]  # ids
SIZES = {"dim": 4, "num_steps": 3, "codebook_size": 16, "num_blocks": 1, "hidden_dim": 8}


def made() -> Index:
    codec = Codec(random_model(ModelConfig(**SIZES)), EncodeOptions(num_pairs=16, beam_width=4, precision="float32"))
    return Index.build(codec, random_vectors(len(OLD), 4), 5, pairwise=True)


def changed(folder: Path) -> Index:
    """The index that is there, with other ids."""
    index = Index.load(folder)
    index.remove(np.setdiff1d(OLD, NEW))
    index.add(random_vectors(80, 4, 1), ids=NEW[-80:])
    return index


def found(folder: Path) -> list[int]:
    """The ids of the index that is there, which must be whole: all is verified, and every vector is decoded."""
    index = Index.load(folder, mmap=False)
    ids_R = np.sort(index.search(np.zeros(4), k=len(index), nprobe=5)[1])
    assert np.isfinite(index.reconstruct(ids_R)).all()
    return ids_R.tolist()


def main(folder: Path) -> int:
    original, path = folder / "original", folder / "index"
    made().save(original)
    states = []
    for point in range(10_000):
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(original, path)
        index = changed(path)
        if not ends_at(point, path, lambda index=index: index.save(path), OPERATIONS, UNTOLD):
            break
        ids = found(path)
        assert ids in (OLD.tolist(), NEW.tolist()), f"after an end at operation {point} there are {len(ids)} vectors"
        states.append(ids == NEW.tolist())
    assert found(path) == NEW.tolist() and states == sorted(states) and set(states) == {False, True}
    index.save(path, overwrite=True)  # what was killed before left nothing that is in the way
    assert found(path) == NEW.tolist() and len(list(path.iterdir())) == len(list(original.iterdir()))
    return point


@pytest.mark.slow
def test_an_end_at_any_operation_on_files_leaves_the_old_index_or_the_new_one(tmp_path):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    assert count_points(Path(__file__), tmp_path, environment=environment) > 50


if __name__ == "__main__":
    print(main(Path(sys.argv[1])))
