"""The process of a round: what must end it, so that it never waits for ever."""

import subprocess
import sys

FULL_DISK = """
from clipkit.dataset.images import rounds
class Full:
    def write(self, *given):
        raise OSError(28, "No space left on device")
rounds._ending_at_errors(Full)().write(b"image")
print("still here")
"""


def test_a_writer_that_cannot_write_ends_its_process_with_the_reason():
    # Raised inside img2dataset's loop the error would leave its threads waiting on a queue for ever.
    done = subprocess.run([sys.executable, "-c", FULL_DISK], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "No space left on device" in done.stderr
    assert "still here" not in done.stdout
