"""What each process of test_two_processes runs: train, and keep this rank's weights."""

import os
import sys
from pathlib import Path

import numpy as np
from safetensors.torch import save_file

from qinco.codec import Codec

folder = Path(sys.argv[1])
end = {"minutes": float(sys.argv[2])} if sys.argv[2:] else {"epochs": 4, "batch_size": 61}
codec = Codec.fit(
    np.load(folder / "x.npy"), output=folder / "codec.safetensors", num_steps=3, codebook_size=32, num_blocks=1,
    embed_dim=6, hidden_dim=8, num_pairs=8, beam_width=2, precision="float32", device="cpu", **end,
)  # fmt: skip
save_file(codec.models[0].state_dict(), folder / f"rank{os.environ.get('RANK', 'alone')}")
