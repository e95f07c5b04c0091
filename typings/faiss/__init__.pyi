# The annotations that faiss ships miss many of its functions and classes: everything of it is Any.
from typing import Any

def __getattr__(name: str) -> Any: ...
