"""Codecs: what users train, save, and encode and decode with."""

from qinco.codec.codec import Codec
from qinco.codec.product import ProductCodec, load_codec

__all__ = ["Codec", "ProductCodec", "load_codec"]
