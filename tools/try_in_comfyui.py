#!/usr/bin/env python3
"""Run this pack's workflows in a real ComfyUI and save the images.

    python tools/try_in_comfyui.py                          every workflow of workflows/api/ on a tiny random model
    python tools/try_in_comfyui.py my_api_workflow.json --checkpoint sd15.safetensors --models ~/ComfyUI/models

ComfyUI is taken from COMFYUI_PATH, from a ComfyUI around the pack, from ~/comfy/ComfyUI, or cloned into a cache. The
server works on a temporary base directory: an existing installation is read and never written to.

Exit codes: 0 all images made, 1 a workflow failed, 2 wrong arguments, 3 no ComfyUI, or it does not start.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

try:
    from harness import workflow as workflows
    from harness.find import PACK, HostNotFound, find_host, is_host
    from harness.models.files import ModelFiles, write_models
    from harness.server.serve import ServerError, serve
except ImportError as missing:
    print(f"{missing}. Install the test tools first: python -m pip install -e \".[test]\"", file=sys.stderr)
    raise SystemExit(3) from missing

RELEASE = "v0.33.0"
REPOSITORY = "https://github.com/comfyanonymous/ComfyUI"
TINY_SIZE, TINY_STEPS = 64, 4


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n\n")[0],
        epilog=__doc__.partition("\n\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("workflow", nargs="*", type=Path, help="API-format workflows; default: all of workflows/api/")
    parser.add_argument("--stock", action="store_true", help="run a stock text-to-image workflow: does ComfyUI work?")
    parser.add_argument("--models", type=Path, help="models folder of an installation, for the names below")
    parser.add_argument("--checkpoint", help="base checkpoint; without one a tiny random model takes its place")
    parser.add_argument("--unet", help="concept model, in diffusion_models")
    parser.add_argument("--concept", help="concept adapter or null-text model, in concept_models")
    parser.add_argument("--lora", help="LoRA, in loras")
    parser.add_argument("--controlnet", help="ControlNet, in controlnet")
    parser.add_argument("--size", type=int, help=f"image size in pixels (tiny model: {TINY_SIZE})")
    parser.add_argument("--steps", type=int, help=f"sampling steps (tiny model: {TINY_STEPS})")
    parser.add_argument("--output", type=Path, default=Path("out"), help="folder for the images (default: out)")
    parser.add_argument("--gpu", action="store_true", help="let ComfyUI use the GPU")
    options = parser.parse_args()
    if options.checkpoint and not options.models:
        parser.error("--checkpoint needs --models, the folder that has checkpoints/ in it")
    if not options.checkpoint and (options.unet or options.concept or options.lora or options.controlnet):
        parser.error("--unet, --concept, --lora and --controlnet need a --checkpoint that they fit")
    if options.models and not options.models.expanduser().is_dir():
        parser.error(f"--models: {options.models} is no folder")
    return options


def find_or_clone() -> Path:
    """A ComfyUI that is here, or else the pinned release in the cache."""
    host = find_host()
    if host is not None:
        return host
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "gcfg" / f"ComfyUI-{RELEASE}"
    if is_host(cache):
        return cache
    print(f"no ComfyUI here: cloning {RELEASE} into {cache}")
    cache.parent.mkdir(parents=True, exist_ok=True)
    command = ["git", "clone", "--quiet", "--depth", "1", "--branch", RELEASE, REPOSITORY, str(cache)]
    try:
        subprocess.run(command, check=True, timeout=600)
    except (OSError, subprocess.SubprocessError) as error:
        raise HostNotFound(
            f"cloning failed ({error}).\nEither set COMFYUI_PATH to a ComfyUI that runs, or do by hand:\n"
            f"  {' '.join(command)}\n  python -m pip install -r {cache / 'requirements.txt'}"
        ) from error
    print(f"its requirements, where they are missing: python -m pip install -r {cache / 'requirements.txt'}")
    return cache


def load(options: argparse.Namespace) -> dict[str, dict]:
    """The workflows to run, by name."""
    if options.stock:
        return {"stock": workflows.stock()}
    paths = options.workflow or sorted((PACK / "workflows" / "api").glob("*.json"))
    if not paths:
        raise FileNotFoundError(f"no workflow in {PACK / 'workflows' / 'api'}: name one, or use --stock")
    return {path.stem: workflows.read(path) for path in paths}


def prepare(base: Path, options: argparse.Namespace, chosen: dict[str, dict]) -> tuple[dict[str, dict], list[str]]:
    """Models and input images in place; the workflows adapted to them, and the server's extra options."""
    extra = []
    if options.checkpoint:
        extra = ["--extra-model-paths-config", str(_point_to(base, options.models.expanduser().resolve()))]
        models = ModelFiles(options.checkpoint, options.unet, options.lora, options.controlnet, options.concept)
        size, steps = options.size, options.steps
    else:
        models = write_models(base / "models")
        size, steps = options.size or TINY_SIZE, options.steps or TINY_STEPS
    adapted = {name: workflows.adapt(graph, models, size, steps) for name, graph in chosen.items()}
    for graph in adapted.values():
        workflows.provide_images(graph, base / "input", size or 512)
    return adapted, extra


def _point_to(base: Path, models: Path) -> Path:
    """A configuration that adds every folder of ``models`` to the server's own."""
    lines = ["gcfg:", f"    base_path: {models}"]
    lines += [f"    {folder.name}: {folder.name}" for folder in sorted(models.iterdir()) if folder.is_dir()]
    path = base / "models.yaml"
    path.write_text("\n".join(lines) + "\n")
    return path


def run(host: Path, options: argparse.Namespace) -> int:
    """Run every workflow on one server; the number of those that failed."""
    chosen = load(options)
    failed = 0
    with tempfile.TemporaryDirectory(prefix="gcfg-comfyui-", ignore_cleanup_errors=True) as folder:
        adapted, extra = prepare(Path(folder), options, chosen)
        started = time.monotonic()
        with serve(host, Path(folder), cpu=not options.gpu, options=tuple(extra)) as server:
            print(f"{host}: ready in {time.monotonic() - started:.0f} s")
            options.output.mkdir(parents=True, exist_ok=True)
            for name, graph in adapted.items():
                started = time.monotonic()
                try:
                    images = server.images(server.queue(graph, timeout=3600))
                except ServerError as error:
                    failed += 1
                    print(f"FAILED {name}: {error}", file=sys.stderr)
                    continue
                for number, content in enumerate(images):
                    path = options.output / f"{name}{f'_{number}' if number else ''}.png"
                    path.write_bytes(content)
                    print(f"{name}: {path.resolve()} ({time.monotonic() - started:.1f} s)")
                if not images:
                    failed += 1
                    print(f"FAILED {name}: it saved no image", file=sys.stderr)
    return failed


def main() -> int:
    options = arguments()
    try:
        failed = run(find_or_clone(), options)
    except (HostNotFound, ServerError) as error:
        print(error, file=sys.stderr)
        return 3
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
