"""The command line tool from the outside."""

import os
import subprocess
import sys

import pytest
from PIL import Image

from harness.find import PACK


def run(*arguments, **environment):
    command = [sys.executable, str(PACK / "tools" / "try_in_comfyui.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ | environment)


@pytest.mark.server
def test_makes_an_image_and_says_where(host, tmp_path):
    result = run("--stock", "--output", tmp_path, COMFYUI_PATH=str(host))
    assert result.returncode == 0, result.stderr
    image = tmp_path / "stock.png"
    assert image.as_uri() in result.stdout
    assert Image.open(image).size == (64, 64)
    again = run("--stock", "--output", tmp_path, COMFYUI_PATH=str(host))
    assert again.returncode == 0 and "ready in" not in again.stdout and image.as_uri() in again.stdout


@pytest.mark.server
def test_runs_a_shipped_workflow(host, tmp_path):
    result = run(PACK / "workflows" / "api" / "03 Concept Adapter.json", "--output", tmp_path, COMFYUI_PATH=str(host))
    assert result.returncode == 0, result.stderr
    assert Image.open(tmp_path / "03 Concept Adapter.png").size == (64, 64)


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
def test_clear_errors(arguments, environment, code, says):
    result = run(*arguments, **environment)
    assert result.returncode == code
    assert says in result.stderr
    assert "Traceback" not in result.stderr
