"""What a user can do wrong, and what the machine can refuse: one class for each exit code."""


class QincoError(Exception):
    """Base of every error that qinco raises on purpose. Its message is one sentence: what, which value, what to do."""

    exit_code = 2


class ConfigError(QincoError, ValueError):
    """A setting, a key or a combination of settings is wrong."""


class DataError(QincoError, ValueError):
    """A file or an array does not hold what it should: truncated, not finite, of the wrong dimension."""

    exit_code = 3


class ResourceError(QincoError):
    """Memory or disk is exhausted, or cannot be written."""

    exit_code = 4
