"""A benchmark of codecs on a user's own vectors: the function `qinco.compare`, and the package that it is made of."""

import sys
from types import ModuleType


class _Callable(ModuleType):
    """A package that is imported becomes an attribute of its parent, which must not hide the function of its name."""

    def __call__(self, *args, **settings) -> dict:
        from qinco.compare.compare import compare

        return compare(*args, **settings)


sys.modules[__name__].__class__ = _Callable
