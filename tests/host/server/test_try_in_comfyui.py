"""The command line tool from the outside: in an empty HOME and a new virtual environment, beside a ComfyUI."""

import pytest
from PIL import Image

from harness.find import PACK
from harness.fresh import fresh_machine


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Runs tools/try_in_comfyui.py in the new environment; the finished process, its output as text."""
    return fresh_machine(tmp_path_factory.mktemp("machine"))


@pytest.mark.server
def test_makes_pictures_says_where_and_finds_them_again(host, run, tmp_path):
    workflow = PACK / "workflows" / "api" / "03 Concept Adapter.json"
    result = run(workflow, "--output", tmp_path, COMFYUI_PATH=str(host))
    assert result.returncode == 0, result.stderr
    image = tmp_path / "03 Concept Adapter.png"
    assert image.as_uri() in result.stdout
    assert Image.open(image).size == (64, 64)
    again = run(workflow, "--output", tmp_path, COMFYUI_PATH=str(host))
    assert again.returncode == 0 and "ready in" not in again.stdout and image.as_uri() in again.stdout


@pytest.mark.server
def test_a_host_in_the_home_is_found(host, run, tmp_path):
    """Without COMFYUI_PATH, as a newcomer's first command; the stock workflow says that ComfyUI itself works."""
    home = tmp_path / "home"
    (home / "comfy").mkdir(parents=True)
    (home / "comfy" / "ComfyUI").symlink_to(host, target_is_directory=True)
    result = run("--stock", "--output", tmp_path / "out", HOME=str(home), USERPROFILE=str(home))
    assert result.returncode == 0, result.stderr
    assert str(home / "comfy" / "ComfyUI") in result.stdout
    assert Image.open(tmp_path / "out" / "stock.png").size == (64, 64)


@pytest.mark.server
def test_tests_run_on_that_host(host, run):
    done = run("--test", "-q", "tests/guidance/test_plan.py", "tests/host/sampling/test_node.py",
               COMFYUI_PATH=str(host))
    assert done.returncode == 0, done.stdout[-2000:]
    assert "skipped" not in done.stdout and "passed" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "environment", "code", "says"),
    [
        (["--checkpoint", "x.safetensors"], {}, 2, "--models"),
        (["--unet", "x.safetensors"], {}, 2, "--checkpoint"),
        (["no_such_file.json"], {}, 2, "no_such_file.json"),
        (["--output", __file__], {}, 2, "is no folder"),
        (["--stock"], {"COMFYUI_PATH": "no/such/host"}, 2, "COMFYUI_PATH"),
    ],
)
def test_clear_errors(run, arguments, environment, code, says):
    result = run(*arguments, **environment)
    assert result.returncode == code
    assert says in result.stderr
    assert "Traceback" not in result.stderr
