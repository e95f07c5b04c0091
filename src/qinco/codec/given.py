"""Codecs as public calls take them."""

import os

from qinco.codec.codec import Codec
from qinco.errors import ConfigError

CodecLike = Codec | str | os.PathLike  # or the path of one


def as_codec(codec: CodecLike) -> Codec:
    """A codec, or that of a path, on the CPU; raises ConfigError for what is neither."""
    if isinstance(codec, Codec):
        return codec
    if isinstance(codec, str | os.PathLike):
        return Codec.load(codec)
    raise ConfigError(f"codec must be a Codec or the path of one, not {codec!r:.80}")
