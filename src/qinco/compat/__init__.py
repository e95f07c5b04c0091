"""Files of other programs: the authors' checkpoints and encoded sets."""
