"""Files that the authors' code wrote: in the folder that QINCO_PARITY names, else in ../shared/parity."""

import os
from pathlib import Path


def _checkout() -> Path:
    """The main checkout, also of a git worktree, whose `.git` is a file that names it."""
    root = Path(__file__).parents[1]
    link = root / ".git"
    return Path(link.read_text().split()[-1]).parents[2] if link.is_file() else root


PARITY = Path(os.environ.get("QINCO_PARITY") or _checkout().parent / "shared" / "parity")
MISSING = f"{PARITY} holds no files that the authors' code wrote: set QINCO_PARITY to a folder of them"
EXISTS = (PARITY / "ix.faissindex").is_file()
