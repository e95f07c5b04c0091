# The language is not Python's: everything of it is Any, and checks do not need the package.
from typing import Any

def __getattr__(name: str) -> Any: ...
