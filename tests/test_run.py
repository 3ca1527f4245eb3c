"""Run: where a result came from, resume or refuse, nothing half-written."""

import errno
import json
import os
import re
import resource
import subprocess
import sys
import time

import pytest

from clipkit import UserError
from clipkit.recipe import EvalRecipe, load_recipe
from clipkit.run import Run, replacing, save_tensors, write_json


def open_run(out, *overrides, command="eval zero-shot", inputs=None):
    return Run.open(out, command=command, recipe=load_recipe(EvalRecipe, None, overrides), inputs=inputs or {"model": "m"}, quiet=True)


def test_a_run_says_where_it_came_from(tmp_path):
    run = open_run(tmp_path / "out", "seed=4")
    run.finish({"scores": []})
    run.close()
    manifest = json.loads((tmp_path / "out" / "run.json").read_text())
    assert manifest["command"] == "eval zero-shot"
    assert manifest["recipe"]["seed"] == manifest["seed"] == 4
    assert manifest["inputs"] == {"model": "m"}
    assert manifest["packages"]["torch"]
    assert manifest["start"] <= manifest["end"]


def test_the_same_recipe_resumes_and_keeps_the_first_start(tmp_path):
    first = open_run(tmp_path / "out")
    first.close()
    second = open_run(tmp_path / "out")
    second.finish({"n": 1})
    second.close()
    manifest = json.loads((tmp_path / "out" / "run.json").read_text())
    assert len(manifest["starts"]) == 2
    third = open_run(tmp_path / "out")
    assert third.report == {"n": 1}
    third.close()


@pytest.mark.parametrize(
    ("change", "pattern"),
    [
        ({"overrides": ["probe.max_iterations=7"]}, r"knob `probe.max_iterations` was 1000, now it is 7"),
        ({"inputs": {"model": "other"}}, r'option `model` was "m", now it is "other"'),
        ({"command": "train"}, r"holds a run of `clipkit eval zero-shot`"),
    ],
)
def test_another_recipe_is_refused_by_the_name_of_the_knob(tmp_path, change, pattern):
    open_run(tmp_path / "out").close()
    (tmp_path / "out" / "metrics.jsonl").write_text("")  # something was found
    before = (tmp_path / "out" / "run.json").read_text()
    with pytest.raises(UserError, match=pattern):
        open_run(tmp_path / "out", *change.pop("overrides", ()), **change)
    assert (tmp_path / "out" / "run.json").read_text() == before


def test_a_directory_with_something_else_in_it_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="is not empty and holds no clipkit run"):
        open_run(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["thesis.tex"]


def test_a_file_is_no_directory(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(UserError, match="is a file"):
        open_run(tmp_path / "out")


def test_a_broken_manifest_is_one_sentence(tmp_path):
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(UserError, match=r"run.json.*cannot be read"):
        open_run(tmp_path)


def test_two_processes_do_not_work_in_one_directory(tmp_path):
    run = open_run(tmp_path / "out")
    with pytest.raises(UserError, match="another process is working"):
        open_run(tmp_path / "out")
    run.close()
    open_run(tmp_path / "out").close()


def test_a_killed_process_leaves_no_lock(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from clipkit.run import Run; from clipkit.recipe import EvalRecipe;"
        "run = Run.open(Path(sys.argv[1]), command='eval zero-shot', recipe=EvalRecipe(), inputs={'model': 'm'}, quiet=True);"
        "print('ready', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "out")], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "ready"
    process.kill()
    process.wait()
    process.stdout.close()
    open_run(tmp_path / "out").close()


def test_a_run_removes_what_a_killed_process_of_it_was_writing(tmp_path):
    """And nothing else: no file of another name, none in a folder, none that a command without the lock writes now."""
    out = tmp_path / "out"
    program = """if True:
        import os, signal, sys
        from pathlib import Path
        from clipkit.run import replacing
        with replacing(Path(sys.argv[1])) as temporary:
            temporary.write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
    """
    open_run(out).close()
    subprocess.run([sys.executable, "-c", program, str(out / "overlap.parquet")], check=False, timeout=60)
    assert [path.name for path in out.glob(".overlap.parquet.*.tmp")]
    names = (".mine.tmp", "a.7.tmp", ".a.12x.tmp", "sub/.b.7.tmp", ".lively.parquet.7.tmp")
    (out / "sub").mkdir()
    for name in names:
        (out / name).write_text("")
    later = time.time() + 60
    os.utime(out / ".lively.parquet.7.tmp", (later, later))
    open_run(out).close()
    assert not list(out.glob(".overlap.parquet.*.tmp"))
    assert all((out / name).exists() for name in names)


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path):
    write_json(tmp_path / "a.json", {"old": 1})

    def broken_write() -> None:
        with replacing(tmp_path / "a.json") as temporary:
            temporary.write_text("half")
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        broken_write()
    assert json.loads((tmp_path / "a.json").read_text()) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_kill_at_any_moment_leaves_a_whole_file(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"n": 0, "ballast": ""})
    code = (
        "import sys; from pathlib import Path; from clipkit.run import write_json; n = 0\n"
        "print('ready', flush=True)\n"
        "while True: n += 1; write_json(Path(sys.argv[1]), {'n': n, 'ballast': 'x' * 100_000})"
    )
    reached = 0
    for moment in (0.05, 0.11, 0.23):
        with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(moment)
            process.kill()
        reached += json.loads(path.read_text())["n"]
    assert reached > 0


def test_not_a_number_never_reaches_a_file(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_a_knob_that_cannot_change_the_result_may_change_on_resume(tmp_path):
    open_run(tmp_path / "out", "workers=1").close()
    (tmp_path / "out" / "metrics.jsonl").write_text("")
    open_run(tmp_path / "out", "workers=2").close()
    with pytest.raises(UserError, match="batch_size"):
        open_run(tmp_path / "out", "batch_size=3")


def test_a_run_that_stopped_at_a_mistake_does_not_bind_its_directory(tmp_path):
    open_run(tmp_path / "out", "seed=1").close()
    (tmp_path / "out" / "stages" / "00-queries").mkdir(parents=True)
    (tmp_path / "out" / "stages" / "00-queries" / "queries.parquet").write_text("given, not found")
    mended = open_run(tmp_path / "out", "seed=2")
    mended.close()
    assert json.loads((tmp_path / "out" / "run.json").read_text())["seed"] == 2
    assert not (tmp_path / "out" / "stages").exists()


def fail_after(path, error):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("")
    raise error


def test_a_mistake_before_anything_was_found_leaves_no_folder_that_was_not_there(tmp_path):
    out = tmp_path / "runs" / "new" / "out"
    with pytest.raises(UserError, match="no such"), open_run(out):
        fail_after(out / "stages" / "00-queries" / "queries.parquet", UserError("no such model"))  # given, not found
    assert list(tmp_path.iterdir()) == []
    with open_run(out):  # every task failed: nothing was found, and nothing raised
        pass
    assert list(tmp_path.iterdir()) == []


def test_what_was_there_or_was_found_or_tells_of_a_crash_stays(tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(UserError), open_run(tmp_path / "there"):
        raise UserError("no such model")
    assert (tmp_path / "there" / "run.json").exists()
    with pytest.raises(UserError), open_run(tmp_path / "found"):
        fail_after(tmp_path / "found" / "metrics.jsonl", UserError("the disk is full"))
    assert (tmp_path / "found" / "metrics.jsonl").exists()
    with pytest.raises(ZeroDivisionError), open_run(tmp_path / "crash"):
        raise ZeroDivisionError
    assert (tmp_path / "crash" / "log.txt").exists()
    (tmp_path / "shared").mkdir()
    with open_run(tmp_path / "shared" / "mine" / "out"):
        (tmp_path / "shared" / "mine" / "other").write_text("another command's")
    assert [path.name for path in (tmp_path / "shared" / "mine").iterdir()] == ["other"]
    with open_run(tmp_path / "done") as run:
        run.finish({"scores": []})
    assert (tmp_path / "done" / "report.json").exists()


def test_a_knob_that_is_newer_than_the_run_does_not_lock_it(tmp_path):
    open_run(tmp_path / "out").close()
    (tmp_path / "out" / "metrics.jsonl").write_text("")
    manifest = json.loads((tmp_path / "out" / "run.json").read_text())
    del manifest["recipe"]["confidence"]
    write_json(tmp_path / "out" / "run.json", manifest)
    open_run(tmp_path / "out").close()


def test_a_manifest_of_another_shape_is_one_sentence(tmp_path):
    (tmp_path / "run.json").write_text("[1]")
    with pytest.raises(UserError, match="is not what clipkit writes"):
        open_run(tmp_path)


def test_errors_and_lines_carry_no_terminal_escapes_and_forge_no_lines(tmp_path):
    assert str(UserError("a\x1b[31m\nERROR forged")) == "a[31m ERROR forged"
    with Run.scratch(tmp_path) as run:
        run.say("x\n2026 ERROR forged\x07")
    assert len((tmp_path / "log.txt").read_text().splitlines()) == 1


def test_a_disk_that_takes_no_tensors_is_an_error_of_the_system(tmp_path):
    torch = pytest.importorskip("torch")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(OSError, match="File too large") as raised:
            save_tensors(tmp_path / "weights.safetensors", {"x": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (raised.value.errno, raised.value.filename) == (errno.EFBIG, str(tmp_path / "weights.safetensors"))
    assert list(tmp_path.iterdir()) == []


def test_where_nobody_watches_progress_is_a_line_now_and_then(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("clipkit.run.SECONDS_BETWEEN_LINES", 0.0)
    for quiet in (False, True):
        with Run.scratch(tmp_path / str(quiet), quiet=quiet) as run, run.progress("reading sources", total=4000, unit="files") as advance:
            time.sleep(0.01)
            advance(1000, note="7 pairs")
        said = capsys.readouterr().err
        assert ("reading sources: 1,000 of 4,000 files, " in " ".join(said.split())) is not quiet
        assert re.search(r"1,000 of 4,000 files, [\d,.]+ files/s, ETA 0:00:\d\d, 7 pairs", (tmp_path / str(quiet) / "log.txt").read_text())


def test_two_machines_that_write_one_file_do_not_write_into_the_same_temporary_one(tmp_path):
    with replacing(tmp_path / "a") as first, replacing(tmp_path / "a") as second:
        assert first != second
        first.write_text("1")
        second.write_text("2")


def test_a_reopened_run_counts_as_unfinished(tmp_path):
    with open_run(tmp_path / "run") as run:
        run.finish({"found": 1})
        assert run.report == {"found": 1}
        run.reopen()
        assert run.report is None
        run.reopen()  # an unfinished run is left as it is
