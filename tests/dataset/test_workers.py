import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from clipkit import UserError
from clipkit.dataset import workers
from clipkit.dataset.workers import Workers


def test_a_value_that_kills_its_process_costs_that_value_only() -> None:
    with Workers(2) as pool:
        assert pool.map(eval, ["1 + 1", "__import__('os')._exit(3)", "2 + 2"]) == [2, None, 4]
        assert pool.map(eval, ["3 + 3"]) == [6]


def test_a_value_that_takes_too_long_costs_that_value_only() -> None:
    with Workers(1) as pool:
        assert pool.map(eval, ["1 + 1", "sum(range(10**12))", "2 + 2"], seconds=0.5) == [2, None, 4]
        timer = "__import__('signal').getitimer(__import__('signal').ITIMER_PROF)"
        assert pool.map(eval, [timer]) == [(0, 0)]


def test_processes_that_cannot_start_are_told_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_make_ready", os.abort)
    with Workers(1) as pool, pytest.raises(UserError, match="end as soon as they start"):
        pool.map(eval, ["1"])


def test_workers_ignore_ctrl_c_and_end_with_a_killed_parent(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import os, time\nfrom clipkit.dataset.workers import Workers\n"
        "if __name__ == '__main__':\n"
        "    pool = Workers(1)\n"
        "    print(pool.map(eval, ['__import__(\"os\").getpid()'])[0], flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        os.kill(worker, signal.SIGINT)
        time.sleep(0.3)
        assert is_running(worker)
        parent.kill()
        parent.wait()
        deadline = time.monotonic() + 20
        while is_running(worker) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not is_running(worker)


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_cores_are_counted_without_the_engine():
    code = "import sys; from clipkit.dataset.workers import cores_here; assert cores_here() >= 1; assert 'daft' not in sys.modules"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=60)
