"""Collections on a full disk: a call that fails leaves them as they were, and works when there is room."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems limit files in other ways")
SCRIPT = Path(__file__).with_name("full_disk.py")
# A file system of 64 MiB at "$1", which no other process sees and which vanishes with this one.
MOUNT = 'mount -t tmpfs -o size=64m none "$1" && shift && exec "$@"'
ALONE = ["unshare", "--map-root-user", "--mount", "sh", "-c", MOUNT, "sh"]


def fails(folder: Path, kind: str, extent: str) -> bool:
    """Whether calls failed and nothing was wrong; False where this user may not mount a file system."""
    alone = [*ALONE, folder] if kind == "disk" else []
    if alone and subprocess.run([*alone, "true"], capture_output=True).returncode:
        return False
    done = subprocess.run([*alone, sys.executable, SCRIPT, folder, kind, extent], capture_output=True, text=True)
    assert done.returncode == 0 and int(done.stdout) > 5, done.stderr
    return True


def test_a_full_disk_changes_nothing(tmp_path):
    assert fails(tmp_path, "disk", "few") or fails(tmp_path, "limit", "few")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["limit", "disk"])
def test_a_full_disk_changes_nothing_at_any_moment(tmp_path, kind):
    if not fails(tmp_path, kind, "all"):
        pytest.skip("this user may not mount a file system of his own")
