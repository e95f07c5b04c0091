"""What Windows and macOS lack is missed only where it is used, and there is another way."""

import subprocess
import sys

import pytest

SCRIPT = """
import mmap, os, pathlib, signal, sys, types
import faiss, safetensors, torch, torch._dynamo  # which know the real system

sys.modules["fcntl"] = sys.modules["resource"] = None
locked = []
def locking(file, mode, count):
    if (at := os.lseek(file, 0, os.SEEK_CUR)) and len(locked) == 0:
        locked.append(at)
        raise PermissionError(13, "locked by another process")
    locked.append(at)
sys.modules["msvcrt"] = types.SimpleNamespace(locking=locking, LK_NBLCK=2)
missing = {
    os: ("register_at_fork fork sysconf sched_getaffinity posix_fallocate posix_fadvise O_NOFOLLOW O_DIRECTORY "
         "O_CLOEXEC pread"),
    signal: "SIGHUP SIGUSR1 pthread_kill pthread_sigmask", mmap: "MADV_DONTNEED MADV_SEQUENTIAL",
}
for module, names in missing.items():
    for name in names.split():
        vars(module).pop(name, None)

import numpy as np
import qinco
from qinco.atomic import exclusive

os.chdir(sys.argv[1])
with exclusive(pathlib.Path("waited")):
    pass
x = np.random.default_rng(0).standard_normal((600, 8)).astype(np.float32)
codec = qinco.Codec.fit(x, num_steps=2, codebook_size=8, num_blocks=1, epochs=1, output="codec.safetensors")
qinco.encode_file(codec, x, "codes")
qinco.encode_file(codec, x, "codes.npy")
qinco.decode_file(codec, "codes.npy", "decoded.npy")
index = qinco.Index.build(codec, x, 4)
index.add(x[:10])
index.save("index")
qinco.build_index("codes", "built", codec=codec, num_lists=4)
for folder in ("index", "built"):
    qinco.Index.load(folder).search(x[:5])
qinco.exhaustive_search(x[:5], (codec, codec.encode(x)))
qinco.kmeans(x, 4)
qinco.check_installation()
print(len(locked) > 2 and set(locked))
"""


WITHOUT_LOCKS = """
import pathlib, sys

sys.modules["fcntl"] = sys.modules["msvcrt"] = None
from qinco.atomic import exclusive

with exclusive(pathlib.Path(sys.argv[1], "lock")):
    print("nobody waits")
"""


@pytest.mark.parametrize(
    ("script", "last"), [(SCRIPT, f"{{{(1 << 31) - 2}}}"), (WITHOUT_LOCKS, "nobody waits")], ids=["windows", "no locks"]
)
def test_everything_works_without_what_a_system_lacks(tmp_path, script, last):
    """On Windows another process has locked a byte once, and then it is free."""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == last
