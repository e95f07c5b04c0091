"""A benchmark of codecs on a user's own vectors: what `qinco.compare` is made of."""
