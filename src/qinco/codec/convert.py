"""Converting codecs between our files and the authors' checkpoints."""

import logging
import os

from qinco.atomic import check_output
from qinco.codec.codec import Codec
from qinco.codec.given import CodecLike, as_codec
from qinco.config import EncodeOptions, checkpoint_encode_options
from qinco.store.codec import CHECKPOINT_SUFFIX, SUFFIXES

_LOG = logging.getLogger(__name__)


def convert_codec(
    codec: CodecLike, output: str | os.PathLike, options: EncodeOptions | None = None, *,
    overwrite: bool = False, inputs=(),
) -> Codec:  # fmt: skip
    """Write a codec in another form: .safetensors is ours, .pt the authors' checkpoint.

    The authors' code cannot search over the whole beam (num_pairs): unless `options` say otherwise, a checkpoint gets
    the paper's num_candidates and beam_width instead, with a warning.

    Args:
        codec: a codec, or the path of one in either form.
        output: a .safetensors or .pt file.
        options: encoding options to store; the codec's own by default.
        overwrite: replace an existing file.
        inputs: further files that must not be replaced.

    Returns:
        The codec with the options that were stored.

    Example:
        >>> convert_codec("codec.safetensors", "codec.pt")
    """
    if not isinstance(codec, Codec):
        inputs, codec = [*inputs, codec], as_codec(codec)
    output = check_output(output, suffixes=SUFFIXES, overwrite=overwrite, inputs=inputs)
    stored = options or codec.encode_options
    stored.check_model(codec.config)
    if output.suffix.lower() == CHECKPOINT_SUFFIX and stored.num_pairs is not None and options is None:
        config, given = codec.config, f"C={stored.num_pairs} B={stored.beam_width}"
        stored = checkpoint_encode_options(config.codebook_size, config.has_preselector, config.starts_from_coarse)
        kept = f"A={stored.num_candidates} B={stored.beam_width} are stored; give others with A= and B="
        _LOG.warning("the authors' code does not know num_pairs (%s): %s", given, kept)
    converted = codec.with_options(stored)
    converted.save(output)
    return converted
