"""What CI does on a bare machine, where it needs no network: packed hosts, the environment's mark, runs in parallel."""

import sys
import tarfile
import time

import pytest

from harness.ci import environment, hosts
from harness.ci.__main__ import plan
from harness.ci.jobs import Job, closing_line, run_all

FILES = {"main.py": "", "nodes.py": "x = 1\n", "folder_paths.py": "", "comfy/samplers.py": "", "empty/": None}


@pytest.fixture
def archives(tmp_path, monkeypatch):
    """A folder with two packed hosts, on a machine that has no other."""
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    monkeypatch.setattr("harness.ci.hosts.find_host", lambda: None)
    for version in ("0.3.64", "0.18.1"):
        folder = tmp_path / "made" / f"ComfyUI-{version}"
        for name, text in (FILES | {"comfyui_version.py": f'__version__ = "{version}"\n'}).items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).mkdir() if text is None else (folder / name).write_text(text)
        (tmp_path / "packed").mkdir(exist_ok=True)
        with tarfile.open(tmp_path / "packed" / f"{folder.name}.tar.xz", "w:xz") as packed:
            packed.add(folder, folder.name)
    return tmp_path / "packed"


def test_hosts_are_unpacked_once_and_mended(archives, tmp_path, capsys):
    cache = tmp_path / "cache"
    found = hosts.collect(archives, cache)
    assert list(found) == [(0, 3, 64), (0, 18, 1)]
    assert (cache / "ComfyUI-0.3.64" / "empty").is_dir()
    assert capsys.readouterr().out.count("unpacking") == 2
    assert hosts.collect(archives, cache) == found
    assert capsys.readouterr().out == ""
    broken, own = found[0, 3, 64] / "nodes.py", found[0, 3, 64] / "own.txt"
    broken.write_text("x")
    own.write_text("stays")
    (cache / "ComfyUI-0.3.64.complete").unlink()  # as after an unpacking that was interrupted
    hosts.collect(archives, cache)
    assert broken.read_text() == "x = 1\n"
    assert own.read_text() == "stays"


def test_a_host_of_the_machine_serves_where_nothing_is_packed(archives, tmp_path, monkeypatch):
    hosts.collect(archives, tmp_path / "elsewhere")
    here = tmp_path / "elsewhere" / "ComfyUI-0.18.1"
    monkeypatch.setattr("harness.ci.hosts.find_host", lambda: here)
    found = hosts.collect(tmp_path / "nothing", tmp_path / "cache")
    assert found == {(0, 3, 64): here.parent / "ComfyUI-0.3.64", (0, 18, 1): here}


def test_requirements_are_installed_when_they_change(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(environment, "_pip", lambda python, quiet, *arguments: asked.append(arguments))
    (tmp_path / "requirements.txt").write_text("torch\n")
    for _ in range(2):
        python = environment.prepare(tmp_path / "env", tmp_path)
    assert environment._runs(python)
    assert [arguments[0] for arguments in asked] == [environment.TORCH[0], "-e"]
    (tmp_path / "requirements.txt").write_text("torch\nmore\n")
    environment.prepare(tmp_path / "env", tmp_path)
    assert [arguments[0] for arguments in asked[2:]] == [environment.TORCH[0], "-e"]
    environment.prepare(tmp_path / "env", None)
    assert [arguments[0] for arguments in asked[4:]] == [environment.TORCH[0], "-e"]
    assert "-r" not in asked[4]


def test_plan(tmp_path):
    versions = [(0, 3, 64), (0, 8, 0), (0, 18, 1), (0, 33, 0)]
    jobs = plan({version: tmp_path / str(version) for version in versions}, "python", ["-x"])
    assert [job.name for job in jobs] == [
        "ComfyUI 0.33.0, everything", "lint", "ComfyUI 0.3.64, host tests",
        "ComfyUI 0.8.0, smoke set", "ComfyUI 0.18.1, smoke set"]
    assert [list(job.command[4:]) for job in jobs if job.name != "lint"] == [
        ["-x"], ["tests/host", "-x"], *[["tests/host", "-m", "smoke", "-x"]] * 2]
    assert jobs[2].environment["COMFYUI_PATH"] == str(tmp_path / "(0, 3, 64)")
    assert [job.name for job in plan({(0, 33, 0): tmp_path}, "python", [])] == ["ComfyUI 0.33.0, everything", "lint"]


def python(code):
    return [sys.executable, "-c", code]


PASSED, FAILED = "===== 3 passed, 1 skipped in 61.50s (0:01:01) =====", "==== 1 failed, 2 passed in 0.10s ===="


def test_failures_count_and_the_closing_line_is_last(capsys):
    jobs = [Job("first", python(f"print('{PASSED}')"), 60), Job("second", python(f"print('{PASSED}')"), 60)]
    assert run_all(jobs, side_by_side=2) == 0
    assert capsys.readouterr().out.splitlines()[-2:][0].startswith("-- first: passed")
    jobs.insert(1, Job("broken", python(f"import sys; print('{FAILED}\\nmore'); sys.exit(1)"), 60))
    assert run_all(jobs, side_by_side=2) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[-2].startswith("-- broken: failed (1)")
    assert said[-1] == FAILED


def test_a_run_that_hangs_ends_with_what_it_started(tmp_path, capsys):
    left = tmp_path / "left"
    child = f"import time, pathlib; time.sleep(4); pathlib.Path({str(left)!r}).touch()"
    code = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(60)"
    assert run_all([Job("hangs", python(code), 1.0)], side_by_side=1) == 1
    assert "ran past its time limit" in capsys.readouterr().out
    time.sleep(4)
    assert not left.exists()


def test_environment_reaches_the_run(capsys):
    job = Job("speaks", python("import os; print(os.environ['GCFG_REQUIRE_HOST'])"), 60, {"GCFG_REQUIRE_HOST": "1"})
    assert run_all([job], side_by_side=1) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "1"


@pytest.mark.parametrize("line", [
    "21 passed in 4.07s", "1 failed, 300 passed, 4 skipped, 2 warnings in 310.11s (0:05:10)",
    "=== no tests ran in 0.12s ===", "1 error in 2.00s", "==== 40 deselected in 9.00s ====",
])
def test_closing_line(line):
    assert closing_line(f"a test that failed in 3 ways\n{line}\nfatal: later noise") == line
