"""Makes the golden files of the codec's format, version 1. Run once; what it wrote must load forever.

    python tests/data/make_golden.py

It refuses to replace them: a new version of the format gets new files beside these.
"""

from pathlib import Path

import numpy as np

from qinco.codec import Codec, ProductCodec

HERE = Path(__file__).parent
SMALL = {
    "num_steps": 3, "codebook_size": 4, "num_blocks": 1, "embed_dim": 5, "hidden_dim": 6, "num_pairs": 8,
    "beam_width": 4, "epochs": 3, "batch_size": 32, "precision": "float32", "device": "cpu", "seed": 1,
}  # fmt: skip


def main() -> None:
    generator = np.random.default_rng(1)
    x_ND = (generator.standard_normal((300, 4)) @ generator.standard_normal((4, 4)) + 3).astype(np.float32)
    codecs = {
        "golden-codec-v1": Codec.fit(x_ND, **SMALL),
        "golden-ivf-codec-v1": Codec.fit(x_ND, coarse_centroids=x_ND[:6], **SMALL),
        "golden-product-codec-v1": ProductCodec.fit(x_ND, num_parts=2, rotate=True, **SMALL),
    }
    for name, codec in codecs.items():
        codec.save(HERE / f"{name}.safetensors", overwrite=False)
        codes = codec.encode(x_ND[:40])
        arrays = dict(zip(("codes", "lists"), codes if codec.is_ivf else (codes,), strict=False))
        decoded = codec.decode(*arrays.values())
        np.savez(HERE / f"{name}.npz", vectors=x_ND[:40], decoded=decoded, **arrays)


if __name__ == "__main__":
    main()
