"""The shipped workflows with nodes of other packs, on a real server that has them, and in its frontend."""

import io
import json

import numpy as np
import pytest
from PIL import Image, ImageSequence

from harness import workflow
from harness.find import PACK
from harness.packs import PACKS, checkout, needed
from harness.server.browser import browse
from harness.server.serve import serve

pytestmark = pytest.mark.server

TITLES = sorted(path.stem for path in (PACK / "workflows" / "api").glob("*.json")
                if workflow.foreign(workflow.read(path)))


@pytest.fixture(scope="module")
def folders():
    """The other packs that there are, by pack."""
    return {pack: folder for pack in PACKS if (folder := checkout(pack))}


@pytest.fixture(scope="module")
def beside(host, folders, tmp_path_factory):
    """A running server with those packs, and tiny models for their nodes."""
    from harness.models import files, motion

    if not folders:
        pytest.skip("GCFG_OTHER_PACKS names no folder with checkouts of other packs")
    base = tmp_path_factory.mktemp("beside")
    small = files.write_models(base / "models")._replace(ip_adapter="tiny_ip_adapter.safetensors")
    (base / "models" / "ipadapter").mkdir()
    files.save_file(files.ip_adapter(7), base / "models" / "ipadapter" / small.ip_adapter)
    wide = motion.write_models(base / "models")
    with serve(host, base, packs=[*folders.values()]) as running:
        running.models = {"ADE_": wide, "IPAdapter": small}
        yield running


@pytest.fixture(params=TITLES)
def title(request, folders):
    """Of a workflow whose packs are there."""
    for pack in needed(workflow.kinds(read(request.param))):
        if pack not in folders:
            pytest.skip(f"{pack.folder} is not in GCFG_OTHER_PACKS")
    return request.param


def read(title):
    return workflow.read(PACK / "workflows" / "api" / f"{title}.json")


def tiny(server, title):
    """The workflow on small models, of three frames where it has several."""
    (pack,) = needed(workflow.kinds(read(title)))
    graph = workflow.adapt(read(title), server.models[pack.begins], size=64, steps=3)
    for node in graph.values():
        if node["inputs"].get("batch_size", 1) > 1:
            node["inputs"]["batch_size"] = 3
    workflow.provide_images(graph, server.base / "input")
    return graph


def run(server, graph):
    """The pixels (frames, 64, 64, 3) of what a workflow saves."""
    (content,) = server.images(server.queue(graph, timeout=500))
    image = Image.open(io.BytesIO(content))
    return np.stack([np.asarray(frame.convert("RGB")).astype(int) for frame in ImageSequence.Iterator(image)])


def test_the_guidance_acts_and_at_scale_0_the_base_is_clean(beside, title):
    """At scale 0, and with the subject left out of the guidance, the picture is that of the base."""
    graph = tiny(beside, title)
    ours, = (node["inputs"] for node in graph.values() if node["class_type"] == "GCFGGuidance")
    sampler, = (node["inputs"] for node in graph.values() if node["class_type"] == "GCFGKSampler")
    shown = run(beside, graph)
    assert shown.shape == (3 if "Video" in title else 1, 64, 64, 3)
    ours["scale"] = 0.0
    without = run(beside, graph)
    assert np.abs(shown - without).mean() > 1
    ours |= {"scale": 4.0, "model": sampler["model"], "conditioning": ours["reference_conditioning"]}
    assert np.abs(run(beside, graph) - without).max() <= 1
    del sampler["guidance"]
    assert np.array_equal(run(beside, graph), without)


@pytest.mark.browser
def test_open_in_the_frontend(beside, folders):
    """No node is missing, and it queues what the API file says."""
    with browse(beside) as frontend:
        for each in TITLES:
            if {*needed(workflow.kinds(read(each)))} <= {*folders}:
                frontend.load(json.loads((PACK / "workflows" / f"{each}.json").read_text()))
                assert frontend.missing_nodes() == [], each
                assert workflow.canonical(frontend.to_api()) == workflow.canonical(read(each)), each
        assert frontend.errors == []
