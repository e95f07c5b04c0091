"""Processes that are forked (multiprocessing's default on Linux up to Python 3.13): they compute on.

A child has no other threads than the one that forked. OpenMP would wait for those of the parent in torch and faiss, and
locks that they held would never be released.
"""

import os
import sys
from threading import Lock
from weakref import WeakSet

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None

generation = 0  # of this process: its parents since this module was imported
_locks: WeakSet = WeakSet()
_files: set[int] = set()


def new_lock() -> Lock:
    """A `threading.Lock` that is free in a child, whoever held it in the parent."""
    lock = Lock()
    _locks.add(lock)
    return lock


def keep_from_children(file: int) -> None:
    """Close a descriptor in children, where it would hold a lock of this process, until `release` is called."""
    _files.add(file)


def release(file: int) -> None:
    """Unlock and close a descriptor of `keep_from_children`."""
    if file in _files:
        _files.remove(file)
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_UN)  # also for a child that was forked just now, and has not closed it yet
        os.close(file)


def _set_up_child() -> None:
    global generation
    generation += 1
    for lock in list(_locks):
        lock._at_fork_reinit()  # as the locks of the standard library are
    for file in _files:
        os.close(file)
    _files.clear()
    for name, function in (("torch", "set_num_threads"), ("faiss", "omp_set_num_threads")):
        if hasattr(sys.modules.get(name), function):  # else it is not loaded, and has no threads to wait for
            getattr(sys.modules[name], function)(1)


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_set_up_child)
