"""Every shipped workflow runs: over the HTTP API, and in the real frontend, which agrees with its API twin."""

import io
import json

import pytest
from PIL import Image

from harness import workflow
from harness.browser import browse
from harness.find import PACK

pytestmark = pytest.mark.server

TITLES = sorted(path.stem for path in (PACK / "workflows").glob("*.json"))


def read(title):
    return workflow.read(PACK / "workflows" / "api" / f"{title}.json")


def tiny(server, title):
    """The workflow on the tiny models, with its input images in place."""
    graph = workflow.adapt(read(title), server.models, size=64, steps=4)
    workflow.provide_images(graph, server.base / "input")
    return graph


def run(server, title):
    (content,) = server.images(server.queue(tiny(server, title)))
    return Image.open(io.BytesIO(content)).convert("RGB")


@pytest.mark.parametrize("title", TITLES)
def test_makes_an_image(server, title):
    image = run(server, title)
    assert image.size == (64, 64)
    low, high = image.convert("L").getextrema()
    assert high - low > 10


def test_ksampler_and_patched_model_make_the_same_image(server):
    ours, patched = (run(server, title) for title in ("Concept and Control", "Stock KSampler on a Patched Model"))
    assert ours.tobytes() == patched.tobytes()


@pytest.mark.browser
def test_open_and_run_in_the_frontend(server):
    with browse(server) as frontend:
        for title in TITLES:
            frontend.load(json.loads((PACK / "workflows" / f"{title}.json").read_text()))
            assert frontend.missing_nodes() == [], title
            assert canonical(frontend.to_api()) == canonical(read(title)), title
            frontend.set_inputs(tiny(server, title))
            assert frontend.run()["kind"] == "execution_success", title
        assert frontend.errors == []


def canonical(api):
    """A workflow in API format whatever its node numbers and the order of its nodes."""

    def describe(key):
        node = api[key]
        return [node["class_type"], {name: plain(value) for name, value in node["inputs"].items()}]

    def plain(value):
        if isinstance(value, list):
            return [describe(value[0]), value[1]]
        return int(value) if isinstance(value, float) and value.is_integer() else value  # JavaScript has one number

    return sorted(json.dumps(describe(key), sort_keys=True) for key in api)
