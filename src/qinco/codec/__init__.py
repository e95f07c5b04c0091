"""Codecs: what users train, save, and encode and decode with."""

from qinco.codec.codec import Codec, ProductCodec

__all__ = ["Codec", "ProductCodec"]
