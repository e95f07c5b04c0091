"""Codecs on the Hugging Face hub: `SharedCodec` says how they are written there and read."""

from pathlib import Path
from typing import Any

from qinco.hub.pretrained import Pretrained


class SharedCodec(Pretrained):
    """A codec as one safetensors file of a repository."""

    _hub_kind, _hub_content = "codec", "model.safetensors"

    def _hub_config(self: Any) -> tuple[dict, dict]:
        trained = {name: self.provenance[name] for name in ("num_vectors", "valid_mse") if name in self.provenance}
        config = {
            "dim": self.dim, "num_codes": self.num_codes, "bytes_per_vector": self.bytes_per_vector,
            "num_parts": len(self.weights), "model": self.config.to_dict(), "encode": self.encode_options.to_dict(),
        }  # fmt: skip
        return config | ({"trained": trained} if trained else {}), {}

    def _hub_write(self: Any, place: Path) -> None:
        self.save(place)

    @classmethod
    def _hub_read(cls: Any, place: Path, device: str):
        return cls.load(place, device)
