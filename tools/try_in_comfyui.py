#!/usr/bin/env python3
"""Run this pack's workflows in a real ComfyUI and save the pictures. Needs nothing but Python: it makes the rest.

    python tools/try_in_comfyui.py           every workflow of workflows/api/, on the small models of this project
    python tools/try_in_comfyui.py --test    all tests, in the same environment
    python tools/try_in_comfyui.py my_api_workflow.json --checkpoint sd15.safetensors --models ~/ComfyUI/models

ComfyUI is taken from COMFYUI_PATH, from a ComfyUI around the pack, from ~/comfy/ComfyUI, or cloned into the cache
(~/.cache/gcfg), and so is a Python that has its requirements. Where none can be had, diffusers runs what it can. The
server works on a base directory of its own: an existing installation is read and never written to.

Exit codes: 0 all pictures made, 1 a workflow or test failed, 2 wrong arguments, 3 ComfyUI does not start.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from harness import machine  # noqa: E402
from harness.find import PACK, HostNotFound  # noqa: E402

NONE = "none"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n\n")[0],
        epilog=__doc__.partition("\n\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("workflow", nargs="*", type=Path, help="API-format workflows; default: all of workflows/api/")
    parser.add_argument("--stock", action="store_true", help="run a stock text-to-image workflow: does ComfyUI work?")
    parser.add_argument("--models", type=Path, help="models folder of an installation, for the names below")
    parser.add_argument("--checkpoint", help="base checkpoint; without one a small model takes its place")
    parser.add_argument("--unet", help="concept model, in diffusion_models")
    parser.add_argument("--concept", help="concept adapter or null-text model, in concept_models")
    parser.add_argument("--lora", help="LoRA, in loras")
    parser.add_argument("--controlnet", help="ControlNet, in controlnet")
    parser.add_argument("--size", type=int, help="picture size in pixels (small models: 64)")
    parser.add_argument("--steps", type=int, help="sampling steps (small models: 20, random ones: 4)")
    parser.add_argument("--output", type=Path, default=Path("out"), help="folder for the pictures (default: out)")
    parser.add_argument("--again", action="store_true", help="make pictures anew that are there already")
    parser.add_argument("--gpu", action="store_true", help="let ComfyUI use the GPU")
    parser.add_argument("--without-comfyui", action="store_true", help="run what diffusers can, as where none is found")
    parser.add_argument("--test", nargs=argparse.REMAINDER, metavar="...", help="run the tests; the rest is for pytest")
    parser.add_argument("--host", help=argparse.SUPPRESS)  # given by the first part to the second, see main
    options = parser.parse_args()
    if options.checkpoint and not options.models:
        parser.error("--checkpoint needs --models, the folder that has checkpoints/ in it")
    if not options.checkpoint and (options.unet or options.concept or options.lora or options.controlnet):
        parser.error("--unet, --concept, --lora and --controlnet need a --checkpoint that they fit")
    if options.models and not options.models.expanduser().is_dir():
        parser.error(f"--models: {options.models} is no folder")
    if missing := [path for path in options.workflow if not path.is_file()]:
        parser.error(f"there is no {missing[0]}")
    if options.output.exists() and not options.output.is_dir():
        parser.error(f"--output: {options.output} is no folder")
    return options


def main() -> int:
    """Find or make a ComfyUI and a Python for it, then go on in that Python."""
    options = arguments()
    if options.host:
        from harness.trial import trial

        return trial(None if options.host == NONE else Path(options.host), options)
    try:
        host, reason = (None, "as asked") if options.without_comfyui else machine.find_or_clone()
        python = machine.python_for(host)
    except HostNotFound as error:
        print(error, file=sys.stderr)
        return 2
    except (OSError, subprocess.SubprocessError) as error:
        print(f"the environment could not be made: {error}", file=sys.stderr)
        return 3
    if host is None:
        print(f"without ComfyUI ({reason}): diffusers runs the same recipes on the same files", flush=True)
    if options.test is not None:
        environment = os.environ | ({"COMFYUI_PATH": str(host)} if host else {}) | {"OMP_NUM_THREADS": "1"}
        command = [str(python), "-m", "pytest", *options.test]
        return min(1, subprocess.run(command, cwd=PACK, env=environment).returncode)
    command = [str(python), str(Path(__file__).resolve()), "--host", str(host or NONE), *sys.argv[1:]]
    return subprocess.run(command).returncode


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except KeyboardInterrupt:
        raise SystemExit(130) from None
