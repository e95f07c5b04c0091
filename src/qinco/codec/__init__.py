"""Codecs: what users train, save, and encode and decode with."""

from qinco.codec.codec import Codec

__all__ = ["Codec", "ProductCodec", "load_codec"]
load_codec = Codec.load


class ProductCodec:
    """PQ-QINCo: `Codec.fit` with several parts, and `Codec.load`."""

    load = Codec.load

    @staticmethod
    def fit(x, preset: str | None = "auto", *, num_parts: int = 2, **settings) -> Codec:
        """`Codec.fit(x, preset, num_parts=num_parts, ...)`."""
        return Codec.fit(x, preset, num_parts=num_parts, **settings)
