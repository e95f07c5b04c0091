"""Codecs of few vectors beside faiss's residual quantizer, on other vectors: a Markdown row.

python benchmarks/few_vectors.py vectors=X [rows=20000] [rq=0] [key=value ...]

`vectors` is a file, `digits`, or a file given as `pairs:FILE`, whose vectors are joined two by two. Of shuffled vectors
the first `rows` are those to train on, and the last 3,000 those that the error is of. The other keys are settings of
`Codec.fit`; 8 bytes and 8 epochs where nothing else is given. `rq=5` measures a residual quantizer with a beam of 5.
`digits` are scikit-learn's images of 8 x 8 pixels, enlarged to 28 x 28, turned, bent and sharpened.
Run it with OMP_NUM_THREADS=1.
"""

import sys
import time

import numpy as np
from training_time import commit, error, value_of

import qinco

UNSEEN, DIGITS, SIDE, JUDGED = 3000, 26_000, 28, 2000


def digits(count: int) -> np.ndarray:
    from scipy import ndimage
    from sklearn.datasets import load_digits

    generator = np.random.default_rng(0)
    images, pixels_ND = load_digits().images / 16, np.empty((count, SIDE * SIDE), np.uint8)
    for pixels_D in pixels_ND:
        image = np.pad(ndimage.zoom(images[generator.integers(len(images))], 2.5, order=3), 4)
        angle, (tall, wide) = generator.normal(0, 0.2), np.exp(generator.normal(0, 0.1, 2))
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        places = np.indices((SIDE, SIDE)) - SIDE / 2 + 0.5 + generator.normal(0, 1, (2, 1, 1))
        places = np.tensordot(turn @ [[tall, tall * generator.normal(0, 0.2)], [0, wide]], places, 1) + SIDE / 2 - 0.5
        bend = ndimage.gaussian_filter(generator.normal(0, 1, (2, SIDE, SIDE)), (0, 4, 4))
        bent = ndimage.map_coordinates(image, places + bend * generator.gamma(4, 0.3) / bend.std(), order=1)
        sharp = (bent - generator.uniform(0.25, 0.5)) * generator.uniform(2, 5) + 0.3
        pixels_D[:] = (np.clip(ndimage.gaussian_filter(sharp, 0.5), 0, 1) * 255).ravel()
    return pixels_ND


def vectors_of(name: str) -> np.ndarray:
    if name == "digits":
        return digits(DIGITS)
    all_ND = qinco.open_vectors(name.removeprefix("pairs:"))[:]
    all_ND = all_ND[np.random.default_rng(5).permutation(len(all_ND))]
    if not name.startswith("pairs:"):
        return all_ND
    half = len(all_ND) // 2
    return np.concatenate([all_ND[:half], all_ND[half : 2 * half]], 1)


def rq_errors(x_ND: np.ndarray, unseen_ND: np.ndarray, num_steps: int, beam: int) -> tuple[float, float]:
    import faiss

    quantizer = faiss.ResidualQuantizer(x_ND.shape[1], num_steps, 8)
    quantizer.max_beam_size = beam
    quantizer.train(x_ND)
    of = (x_ND[:JUDGED], unseen_ND)
    found = (quantizer.decode(quantizer.compute_codes(given)) for given in of)
    errors = (float(np.square(a - b).sum(1).mean(dtype=np.float64)) for a, b in zip(found, of, strict=True))
    return next(errors), next(errors)


def main() -> None:
    given = {name: value_of(text) for name, text in (word.split("=", 1) for word in sys.argv[1:])}
    name, rows, beam = given.pop("vectors"), given.pop("rows", 20_000), given.pop("rq", 0)
    all_ND = np.asarray(vectors_of(name), np.float32)
    x_ND, unseen_ND = all_ND[:rows], all_ND[-UNSEEN:]
    if rows + UNSEEN > len(all_ND):
        sys.exit(f"rows={rows} and {UNSEEN} others are more than the {len(all_ND)} vectors of {name}")
    settings = {"num_steps": given.pop("M", 8)} | given
    words = " ".join(f"{key}={value}" for key, value in given.items())
    row = [commit(), name.rpartition("/")[2], f"{rows} x {x_ND.shape[1]}", f"M={settings['num_steps']} {words}".strip()]
    begun = time.process_time()
    if beam:
        train, unseen = rq_errors(x_ND, unseen_ND, settings["num_steps"], beam)
        row[-1] = f"M={settings['num_steps']} RQ, beam {beam}"
    else:
        if "epochs" not in given and "minutes" not in given:
            settings["epochs"] = 8
        codec = qinco.Codec.fit(x_ND, progress=False, **settings)
        train, unseen = error(codec, x_ND[:JUDGED]), error(codec, unseen_ND)
    seconds = time.process_time() - begun
    print("|", " | ".join([*row, f"{train:.6g}", f"{unseen:.6g}", f"{seconds:.0f}"]), "|", flush=True)


if __name__ == "__main__":
    main()
