"""kill -9 in the middle of a run costs at most the steps since the last save."""

import subprocess
import sys
import time
from pathlib import Path

import torch

from gcfg.training.run import state

ROOT = Path(__file__).resolve().parents[2]
CHANGES = {"save_every": 5, "held_out_every": 0, "seed": 3}
SCRIPT = """
import sys
from pathlib import Path
sys.path[:0] = [sys.argv[1], sys.argv[2]]
import torch
import conftest
torch.set_num_threads(int(sys.argv[5]))
from gcfg.training.settings import Settings
make = conftest.make.__wrapped__(Path(sys.argv[3]), Path(sys.argv[3]) / "pictures")
make("killed", target_steps=100_000, **eval(sys.argv[4])).run()
"""


def test_kill_9(tmp_path, make):
    states = tmp_path / "runs" / "killed" / "states"
    arguments = [str(ROOT), str(ROOT / "tests" / "training"), str(tmp_path), repr(CHANGES),
                 str(torch.get_num_threads())]
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, *arguments], stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and process.poll() is None:
            if any(path.name > "step_00000020" for path in states.glob("step_*.state")):
                break
            time.sleep(0.01)
    finally:
        process.kill()
        errors = process.communicate()[1].decode()
    newest = state.latest(states)
    assert newest is not None, errors
    done = int((tmp_path / "runs" / "killed" / "loss.csv").read_text().rstrip().splitlines()[-1].split(",")[0])
    assert newest.step >= 20 and done - newest.step <= 5
    target = newest.step + 3
    again, whole = make("killed", target_steps=target, **CHANGES), make("whole", target_steps=target, **CHANGES)
    assert again.step == newest.step
    again.run()
    whole.run()
    for name, parameter in whole.task.parameters.items():
        assert torch.equal(parameter, again.task.parameters[name])
    assert whole.folder.table.read_text() == again.folder.table.read_text()
