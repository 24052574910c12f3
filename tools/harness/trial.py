"""A trial of the workflows: on a server of ComfyUI or, where there is none, by diffusers; pictures and a table."""

import argparse
import copy
import hashlib
import html
import json
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from . import workflow as workflows
from .find import PACK, load_package
from .machine import cache
from .models import pictures
from .models.files import NAMES, ModelFiles, write_models
from .server.serve import ServerError, serve

load_package("gcfg", PACK / "gcfg")

from gcfg.terminal import ProgressBar, table  # noqa: E402

TINY_SIZE, TINY_STEPS = 64, 4
LEFT_OUT, FAILED = "left out", "failed"


@dataclass
class Made:
    """What came of a workflow: the files of its pictures, the seconds it took, or why there are none."""

    name: str
    files: list[Path]
    seconds: float = 0.0
    note: str = ""


def trial(host: Path | None, options: argparse.Namespace) -> int:
    """Run the workflows that ``options`` name; the exit code of ``tools/try_in_comfyui.py``."""
    try:
        options.output.mkdir(parents=True, exist_ok=True)
        chosen = load(options)
        large = {name: workflows.foreign(graph) or (workflows.too_large(graph) if not options.checkpoint else "")
                 for name, graph in chosen.items()}
        without = [Made(name, [], note=f"{LEFT_OUT}: {reason}") for name, reason in large.items() if reason]
        graphs, models = prepare(options, {name: graph for name, graph in chosen.items() if not large.get(name)})
        record = Record(options.output, host)
        wanted = {name: graph for name, graph in graphs.items() if options.again or not record.has(name, graph)}
        known = [Made(name, record.files(name), note="made before") for name in graphs if name not in wanted]
        run = on_server if host else by_diffusers
        made = without + known + (run(wanted, models, record, options, host) if wanted else [])
    except ServerError as error:
        print(error, file=sys.stderr)
        return 3
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    show(sorted(made, key=lambda each: each.name), options.output)
    return 1 if any(each.note.startswith(FAILED) for each in made) else 0


def load(options: argparse.Namespace) -> dict[str, dict]:
    """The workflows to run, by name."""
    if options.stock:
        return {"stock": workflows.stock()}
    paths = options.workflow or sorted((PACK / "workflows" / "api").glob("*.json"))
    if not paths:
        raise FileNotFoundError(f"no workflow in {PACK / 'workflows' / 'api'}: name one, or use --stock")
    return {path.stem: workflows.read(path) for path in paths}


def prepare(options: argparse.Namespace, chosen: dict[str, dict]) -> tuple[dict[str, dict], Path]:
    """The workflows adapted to the models that they will run on, and the folder of these, written where it is ours."""
    if options.checkpoint:
        files = ModelFiles(options.checkpoint, options.unet, options.lora, options.controlnet, options.concept)
        return {name: workflows.adapt(graph, files, options.size, options.steps) for name, graph in chosen.items()}, (
            options.models.expanduser().resolve())
    folder, tiny, drawing = small_models()
    adapted = {}
    for name, graph in chosen.items():
        full = any("clip_file" in node["inputs"] for node in graph.values())
        draws = drawing is not None and not full
        size, steps = (pictures.SIZE, pictures.STEPS) if draws else (TINY_SIZE, TINY_STEPS)
        adapted[name] = workflows.adapt(graph, drawing if draws else tiny, options.size or size, options.steps or steps)
        if draws:
            pictures.reword(adapted[name])
    return adapted, folder


def small_models() -> tuple[Path, ModelFiles, ModelFiles | None]:
    """The folder of the small models in the cache, the names of random ones and of those that draw, if they are here.

    Written once for each state of the code that makes them.
    """
    sources = sorted([*(PACK / "tools" / "harness" / "models").glob("*.py"), *pictures.SHIPPED.parent.glob("*.py"),
                      *pictures.SHIPPED.glob("*.safetensors")])
    folder = cache() / f"models-{digest(sources)[:12]}"
    complete = folder / "complete"
    if not complete.is_file():
        print(f"writing the small models into {folder}", flush=True)
        write_models(folder)
    drawing = pictures.write(folder) if pictures.are_here() else None
    complete.touch()
    return folder, NAMES, drawing


def digest(files: list[Path], also: str = "") -> str:
    """A hash of the contents of files."""
    code = hashlib.sha256(also.encode())
    for file in files:
        code.update(file.read_bytes())
    return code.hexdigest()


def on_server(graphs: dict[str, dict], models: Path, record: "Record", options: argparse.Namespace, host: Path
              ) -> list[Made]:
    """Run workflows on one server of the host."""
    made, progress = [], ProgressBar("workflows")
    shown = [] if options.checkpoint or not pictures.are_here() else pictures.examples()
    with tempfile.TemporaryDirectory(prefix="gcfg-comfyui-", ignore_cleanup_errors=True) as folder:
        size = options.size or (512 if options.checkpoint else TINY_SIZE)
        started = time.monotonic()
        extra = ("--extra-model-paths-config", str(_point_to(Path(folder), models)))
        with serve(host, Path(folder), cpu=not options.gpu, options=extra) as server:
            print(f"{host}: ready in {time.monotonic() - started:.0f} s", flush=True)
            for name, graph in graphs.items():
                started, sent = time.monotonic(), copy.deepcopy(graph)
                workflows.provide_images(sent, Path(folder) / "input", size, shown)
                try:
                    contents = server.images(server.queue(sent, timeout=3600))
                    note = "" if contents else f"{FAILED}: it saved no picture"
                except ServerError as error:
                    contents, note = [], f"{FAILED}: {error}"
                made.append(record.keep(name, graph, contents, time.monotonic() - started, note))
                progress(len(made), len(graphs))
    return made


def by_diffusers(graphs: dict[str, dict], models: Path, record: "Record", options: argparse.Namespace, host: None
                 ) -> list[Made]:
    """Run the workflows that are recipes of UNets and prompts; the others are left out and say why."""
    from gcfg.nulltext.formats.checkpoint import CheckpointError

    from .embedded import NeedsComfyUI, Pipelines, read

    pipelines, made = Pipelines(models), []
    for name, graph in graphs.items():
        started = time.monotonic()
        try:
            contents = [pipelines.sheet(read(graph), ProgressBar(name))]
        except (NeedsComfyUI, CheckpointError) as error:
            made.append(Made(name, [], note=f"{LEFT_OUT}: {error}"))
            continue
        made.append(record.keep(name, graph, contents, time.monotonic() - started))
    return made


class Record:
    """Which workflows' pictures are in a folder already, for the same graph and the same code."""

    def __init__(self, folder: Path, host: Path | None):
        self.folder, self.path = folder, folder / ".made.json"
        self._known = json.loads(self.path.read_text()) if self.path.is_file() else {}
        self._code = digest(sorted([*PACK.glob("gcfg/**/*.py"), *PACK.glob("nodes/*.py"),
                                    *PACK.glob("tools/harness/*.py")]), str(host))

    def _digest(self, graph: dict) -> str:
        return hashlib.sha256((self._code + json.dumps(graph, sort_keys=True)).encode()).hexdigest()

    def files(self, name: str) -> list[Path]:
        return [self.folder / file for file in self._known.get(name, {}).get("files", [])]

    def has(self, name: str, graph: dict) -> bool:
        files = self.files(name)
        fresh = self._known.get(name, {}).get("digest") == self._digest(graph)
        return fresh and bool(files) and all(file.is_file() for file in files)

    def keep(self, name: str, graph: dict, contents: list[bytes], seconds: float, note: str = "") -> Made:
        """Write the pictures of a workflow and note them."""
        files = [self.folder / f"{name}{f'_{number}' if number else ''}.png" for number in range(len(contents))]
        for file, content in zip(files, contents, strict=True):
            file.write_bytes(content)
        if files:
            self._known[name] = {"digest": self._digest(graph), "files": [file.name for file in files]}
            self.path.write_text(json.dumps(self._known, indent=1))
        return Made(name, files, seconds, note)


def show(made: list[Made], folder: Path) -> None:
    """A table with links, and the pictures beside each other in ``index.html``."""
    rows = [(each.name, f"{each.seconds:.1f} s" if each.seconds else "", each.files[0].resolve().as_uri() if each.files
             else each.note.splitlines()[0]) for each in made]
    print(table(("workflow", "time", "picture"), rows))
    for each in made:
        if each.note.startswith(FAILED):
            print(f"\n{each.name} {each.note}", file=sys.stderr)
    cells = "".join(f"<figure>{''.join(f'<img src={json.dumps(file.name)}>' for file in each.files)}<figcaption>"
                    f"{html.escape(each.name)}</figcaption></figure>" for each in made if each.files)
    style = "figure{display:inline-block;margin:1em;font-family:sans-serif}img{height:256px;image-rendering:pixelated}"
    page = folder / "index.html"
    page.write_text(f"<!doctype html><meta charset=utf-8><title>GCFG</title><style>{style}</style>{cells}\n")
    print(f"\nall pictures: {page.resolve().as_uri()}")


def _point_to(base: Path, models: Path) -> Path:
    """A configuration that adds every folder of ``models`` to the server's own."""
    lines = ["gcfg:", f"    base_path: {models}"]
    lines += [f"    {folder.name}: {folder.name}" for folder in sorted(models.iterdir()) if folder.is_dir()]
    path = base / "models.yaml"
    path.write_text("\n".join(lines) + "\n")
    return path
