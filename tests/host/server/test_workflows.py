"""Every shipped workflow runs: over the HTTP API, and in the real frontend, which agrees with its API twin."""

import io
import json
import urllib.parse
import urllib.request

import psutil
import pytest
from PIL import Image

from harness import workflow
from harness.find import PACK
from harness.models import encoders, transformers
from harness.packs import pack_of
from harness.server.browser import browse
from harness.server.serve import ServerError

pytestmark = pytest.mark.server

TITLES = sorted(path.stem for path in (PACK / "workflows").glob("*.json"))


def numbered(title):
    """The whole title of a workflow, with its number."""
    (found,) = (full for full in TITLES if full[3:] == title)
    return found


def read(title):
    return workflow.read(PACK / "workflows" / "api" / f"{title}.json")


def tiny(server, title):
    """The workflow on the tiny models, with its input images in place; nodes of other packs are passed by."""
    graph = workflow.without_other_packs(workflow.adapt(read(title), server.models, size=64, steps=4))
    workflow.provide_images(graph, server.base / "input")
    return graph


def run(server, title):
    """The image that the workflow saves; what it shows beside that is not counted."""
    outputs = server.queue(tiny(server, title))["outputs"].values()
    (saved,) = (image for output in outputs for image in output.get("images", []) if image["type"] == "output")
    return Image.open(io.BytesIO(server.image(saved))).convert("RGB")


TRANSFORMERS = [title for title in TITLES if not workflow.loads_a_checkpoint(read(title))]


@pytest.mark.parametrize("title", [pytest.param(title, marks=pytest.mark.slow if "Z-Image" in title else ())
                                   for title in TRANSFORMERS])
def test_makes_an_image_with_a_transformer(server, title):
    """On genuine files of its family by the stock loaders; a data set speaks for its large text encoder."""
    if "LoadTrainingDataset" not in server.request("/object_info"):
        pytest.skip("this ComfyUI loads no conditionings from a data set")
    check(server, transformers.adapt(read(title), transformers.family_of(read(title))))


@pytest.mark.slow
@pytest.mark.parametrize("title", TRANSFORMERS)
def test_makes_an_image_with_a_transformer_and_its_text_encoder(server, title):
    """From the words: 4 to 8 GB and some minutes, because the host has one size of each text encoder."""
    files = transformers.family_of(read(title))
    if files.diffusion_model not in server.request("/object_info")["UNETLoader"]["input"]["required"]["unet_name"][0]:
        pytest.skip(f"this ComfyUI has no {files.config}")
    if psutil.virtual_memory().available < 14 * 2**30:
        pytest.skip("this takes up to 12 GB of memory")
    check(server, transformers.adapt(read(title), files, encoders.write(server.base, files.name)), timeout=1800)


def check(server, graph, timeout=300):
    """It makes a picture, or a video of five frames."""
    outputs = server.queue(graph, timeout)["outputs"].values()
    (saved,) = (image for output in outputs for image in output["images"])
    image = Image.open(io.BytesIO(server.image(saved)))
    assert image.size == (64, 64) and getattr(image, "n_frames", 1) == (5 if saved["filename"].endswith("webp") else 1)
    low, high = image.convert("L").getextrema()
    assert high - low > 10


LONG = [title for title in TITLES if "GCFGTuneWords" in workflow.kinds(read(title))]
"""Whatever the models: the host has one size of CLIP's vision model."""
SHOWING = {"SaveImage", "PreviewImage", "GCFGScaleGrid", "GCFGCompare", "GCFGInspector", "GCFGRegionsFromPrompt",
           "GCFGTrainConceptModel", "GCFGTrainSubject"}
"""Nodes that show a picture after a run."""
SMALL = [title for title in TITLES if not workflow.too_large(read(title))]


@pytest.mark.smoke
@pytest.mark.parametrize("title", [pytest.param(title, marks=[pytest.mark.slow] * (title in LONG)) for title in SMALL])
def test_makes_an_image(server, title):
    image = run(server, title)
    several = workflow.kinds(read(title)) & {"GCFGScaleGrid", "GCFGCompare", "GCFGTuneWords"}
    assert image.size == (64, 64) if not several else min(image.size) > 64
    low, high = image.convert("L").getextrema()
    assert high - low > 10


@pytest.mark.smoke
def test_ksampler_and_patched_model_make_the_same_image(server):
    ours, patched = (run(server, numbered(title)) for title in (
        "Concept and Control", "Stock KSampler on a Patched Model"))
    assert ours.tobytes() == patched.tobytes()


def test_the_template_browser_lists_them_with_thumbnails(server):
    assert sorted(server.request("/api/workflow_templates")["gcfg"]) == TITLES
    for title in TITLES:
        path = f"{server.url}/api/workflow_templates/gcfg/{urllib.parse.quote(title)}"
        assert json.loads(fetch(f"{path}.json"))["nodes"]
        assert Image.open(io.BytesIO(fetch(f"{path}.jpg"))).width == 480
    assert server.request("/api/i18n")["en"]["templateWorkflows"]["category"]["gcfg"] == "GCFG Multi-Guidance"


@pytest.mark.browser
def test_open_and_run_twice_in_the_frontend(server):
    """The second Run, which the host answers from what it kept, leaves every picture where it is shown."""
    with browse(server) as frontend:
        for title in TITLES:
            graph = json.loads((PACK / "workflows" / f"{title}.json").read_text())
            frontend.load(graph)
            assert frontend.missing_nodes() == of_other_packs(read(title)), title
            if of_other_packs(read(title)):  # they run in tests/host/beside
                continue
            assert workflow.canonical(frontend.to_api()) == workflow.canonical(read(title)), title
            if title in LONG or title not in SMALL:
                continue
            frontend.set_inputs(tiny(server, title))
            for _ in range(2):
                assert frontend.run()["kind"] == "execution_success", title
                if lists_results(server) or not graph["extra"].get("linearMode"):
                    assert without_picture(frontend) == [], title
        assert bypassed(frontend, numbered("Several Guidances"), "Towards minimalist") == {"Away from clutter"}
        assert frontend.errors == []


def lists_results(server):
    """Whether the host answers what an app asks for its results; one that does not brings a frontend without apps."""
    try:
        return bool(server.request("/api/jobs"))
    except ServerError:
        return False


def without_picture(frontend, tries=40):
    """The nodes of the open workflow that show pictures, and have none after some seconds, neither has its app."""
    waiting = {key: node for key, node in frontend.to_api().items() if node["class_type"] in SHOWING}
    assert waiting
    for attempt in range(1, tries + 1):
        waiting = {key: node for key, node in waiting.items() if not is_shown(frontend, int(key), node["inputs"])}
        if not waiting:
            break
        if not attempt % 8:
            frontend.read_results_again()
        frontend.page.wait_for_timeout(250)
    return list(waiting)


def is_shown(frontend, node, inputs):
    """Whether a node's picture is there: in the node or, in an app, which shows no nodes, in the page."""
    name = inputs.get("filename_prefix", "").rpartition("/")[2]
    shown = frontend.shown(node) or (frontend.shown_by_name(name) if name else [])
    return any(width for width, *_ in shown)


def of_other_packs(graph):
    """The nodes of a workflow that a ComfyUI without other packs does not have."""
    return sorted(kind for kind in workflow.kinds(graph) if pack_of(kind))


def bypassed(frontend, title, node):
    """The guidances that are left in a workflow whose node ``node`` is bypassed, each connected to something."""
    graph = json.loads((PACK / "workflows" / f"{title}.json").read_text())
    (chosen,) = (entry for entry in graph["nodes"] if entry.get("title") == node)
    chosen["mode"] = 4
    frontend.load(graph)
    api = frontend.to_api()
    linked = [value[0] for entry in api.values() for value in entry["inputs"].values() if isinstance(value, list)]
    assert str(chosen["id"]) not in linked
    return {api[key]["_meta"]["title"] for key in linked if api[key]["class_type"] == "GCFGGuidance"}


def fetch(url):
    with urllib.request.urlopen(url, timeout=30) as answer:
        return answer.read()
