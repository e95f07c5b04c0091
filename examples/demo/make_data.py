"""Make the demo data set: SIFT descriptors of photographs under free licences (README.md names every photograph).

The vectors that a codec is trained on and those that it is tested on come from different photographs. Base and query
vectors are different points of the same photographs, so that a query has a neighbour worth finding.

Run it as README.md says. Needs opencv-python-headless, scikit-image, scikit-learn, numpy, and the photographs of the
Debian package lomiri-wallpapers-16.04. The same versions give the same bytes.
"""

import argparse
import hashlib
import os
from importlib.resources import files
from pathlib import Path

import cv2
import numpy as np

SKIMAGE = Path(str(files("skimage"))) / "data"
SKLEARN = Path(str(files("sklearn"))) / "datasets" / "images"

TRAIN_PHOTOGRAPHS = (
    SKIMAGE / "astronaut.png",
    SKIMAGE / "brick.png",
    SKIMAGE / "chelsea.png",
    SKIMAGE / "grass.png",
    SKIMAGE / "gravel.png",
    SKIMAGE / "hubble_deep_field.jpg",
    SKIMAGE / "rocket.jpg",
    SKLEARN / "flower.jpg",
    "Picture_0B_by_freespace.jpg",
    "Picture_1A_by_freespace.jpg",
    "Wine_by_Jakkub_Mede.jpg",
    "life_by_Aitzol_Berasategi.jpg",
    "picosdeeuropa_by_Aitzol_Berasategi.jpg",
    "seeding_by_Clements_Engelhardt.jpg",
    "sunset_by_Aitzol_Berasategi.jpg",
)
TEST_PHOTOGRAPHS = (
    SKIMAGE / "camera.png",
    SKIMAGE / "coffee.png",
    SKLEARN / "china.jpg",
    "aitzgorri_by_Aitzol_Berasategi.jpg",
    "friends_by_Aitzol_Berasategi.jpg",
)
ROWS = {"train": 35_000, "base": 8_000, "query": 1_000}

SEED = 20240114
LONGEST_SIDE = 1600  # pixels; larger photographs are reduced, none is enlarged
CONTRAST_THRESHOLD = 0.02  # half of OpenCV's default: more points on smooth surfaces
MOST_PER_PHOTOGRAPH = 4_000  # so that no single texture rules the set
NEAREST_ALLOWED = 128  # descriptors have a length of about 512; nearer pairs are one point found twice, or repetition


def describe(path: Path) -> np.ndarray:
    """Return the distinct SIFT descriptors of one photograph: uint8 (N, 128), sorted by value."""
    pixels = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    if pixels is None:
        raise SystemExit(f"{path} is not a photograph that can be read; install its package again.")
    reduction = LONGEST_SIDE / max(pixels.shape)
    if reduction < 1:
        pixels = cv2.resize(pixels, None, fx=reduction, fy=reduction, interpolation=cv2.INTER_AREA)
    _, descriptors = cv2.SIFT_create(contrastThreshold=CONTRAST_THRESHOLD).detectAndCompute(pixels, None)
    return np.unique(descriptors.astype(np.uint8), axis=0)


def draw(photographs: tuple[str | Path, ...], wallpapers: Path, generator: np.random.Generator) -> np.ndarray:
    """Return at most MOST_PER_PHOTOGRAPH random descriptors of each photograph, shuffled together: uint8 (N, 128)."""
    drawn = []
    for photograph in photographs:
        path = wallpapers / photograph
        descriptors = generator.permutation(describe(path))[:MOST_PER_PHOTOGRAPH]
        print(f"{path.name:45s} {len(descriptors):6d} descriptors")
        drawn.append(descriptors)
    return generator.permutation(np.concatenate(drawn))


def far_from_earlier(descriptors: np.ndarray, block_rows: int = 2_000) -> np.ndarray:
    """Say for each row of uint8 (N, 128) whether it is NEAREST_ALLOWED or more away from all rows above: bool (N,)."""
    vectors = descriptors.astype(np.float32)  # exact: every sum of products below stays under 2**24
    squared_lengths = (vectors**2).sum(axis=1)
    far = np.empty(len(vectors), bool)
    for start in range(0, len(vectors), block_rows):
        block, stop = slice(start, start + block_rows), min(start + block_rows, len(vectors))
        products = vectors[block] @ vectors[:stop].T
        squared_distances = squared_lengths[block, None] + squared_lengths[:stop] - 2 * products
        earlier = np.tril(squared_distances < NEAREST_ALLOWED**2, k=start - 1)
        far[block] = ~earlier.any(axis=1)
    return far


def write_bvecs(path: Path, descriptors: np.ndarray) -> None:
    """Write uint8 (N, 128) as .bvecs: each row is its dimension (little-endian int32) and its 128 bytes."""
    rows = np.empty(len(descriptors), dtype=[("dimension", "<i4"), ("values", "u1", descriptors.shape[1])])
    rows["dimension"], rows["values"] = descriptors.shape[1], descriptors
    unfinished = path.with_suffix(".unfinished")
    with unfinished.open("wb") as stream:
        stream.write(rows.tobytes())
        stream.flush()
        os.fsync(stream.fileno())
    unfinished.replace(path)
    print(f"{path.name:12s} {len(rows):6d} rows {rows.nbytes:8d} bytes  sha256 {hashlib.sha256(rows).hexdigest()}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--wallpapers", type=Path, required=True, help="folder with the photographs of the package")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent, help="default: the folder of this script")
    options = parser.parse_args()
    wallpapers = options.wallpapers.resolve()  # joined with an absolute path, it gives way to it
    for path in (wallpapers / photograph for photograph in TRAIN_PHOTOGRAPHS + TEST_PHOTOGRAPHS):
        if not path.is_file():
            raise SystemExit(f"The photograph {path} is missing; README.md names the packages to install.")

    generator = np.random.default_rng(SEED)
    train = draw(TRAIN_PHOTOGRAPHS, wallpapers, generator)
    test = draw(TEST_PHOTOGRAPHS, wallpapers, generator)
    # The training vectors come first: a test vector that is near to one of them is dropped, never the reverse.
    far = far_from_earlier(np.concatenate([train, test]))
    train, test = train[far[: len(train)]], test[far[len(train) :]]
    print(f"left after near duplicates: {len(train)} of training photographs, {len(test)} of test photographs")
    if len(train) < ROWS["train"] or len(test) < ROWS["base"] + ROWS["query"]:
        raise SystemExit(f"too few descriptors for {ROWS}; are the versions those that README.md names?")

    options.output.mkdir(parents=True, exist_ok=True)
    write_bvecs(options.output / "train.bvecs", train[: ROWS["train"]])
    write_bvecs(options.output / "base.bvecs", test[: ROWS["base"]])
    write_bvecs(options.output / "query.bvecs", test[ROWS["base"] :][: ROWS["query"]])


if __name__ == "__main__":
    main()
