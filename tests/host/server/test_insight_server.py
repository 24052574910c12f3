"""The inspector and the scale grid in a real server: what the nodes show and what they pass on."""

import io

import pytest
from PIL import Image

from harness import workflow

pytestmark = pytest.mark.server


def graph(server):
    """Text to image on a model with one more guidance, shrunk to the tiny checkpoint."""
    nodes = workflow.adapt(workflow.stock(), server.models, size=64, steps=3)
    nodes["8"] = {"class_type": "GCFGGuidance", "inputs": {
        "conditioning": ["3", 0], "scale": -0.5, "start_percent": 0.0, "end_percent": 0.6,
        "reference": "unconditional", "name": "Less"}}
    nodes["9"] = {"class_type": "GCFGPatchModel", "inputs": {"model": ["1", 0], "guidance": ["8", 0]}}
    nodes["5"]["inputs"]["model"] = ["9", 0]
    return nodes


def show(text):
    return {"class_type": "PreviewAny", "inputs": {"source": text}}


def pictures(server, entry, node):
    return [Image.open(io.BytesIO(server.image(reference))) for reference in entry["outputs"][node]["images"]]


def test_inspector_shows_its_plot_and_runs_after_the_sampler(server):
    nodes = graph(server)
    nodes["8"]["inputs"]["conditioning"] = ["2", 0]  # not the negative: that guidance would have no effect
    nodes["10"] = {"class_type": "GCFGInspector", "inputs": {"model": ["9", 0], "latent": ["5", 0]}}
    nodes["11"] = show(["10", 1])
    entry = server.queue(nodes)
    (plot,) = pictures(server, entry, "10")
    assert plot.width >= 800 and plot.height >= 600
    lines = entry["outputs"]["11"]["text"][0].splitlines()
    assert lines[0].startswith("call,sigma,progress,guidance")
    assert [line.split(",")[3] for line in lines[1:]] == ["positive (cfg)", "Less"] * 3
    nodes["5"]["inputs"]["seed"] = 77  # the model is cached, the run is another one
    again = server.queue(nodes)["outputs"]["11"]["text"][0]
    assert again.splitlines()[1] != lines[1]


def scale_grid(nodes, **inputs):
    settings = {"model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0], "latent_image": ["4", 0], "seed": 1,
                "steps": 2, "concept_scales": "0", "control_scales": "1, 4", "sampler_name": "euler",
                "scheduler": "normal", "denoise": 1.0}
    return {**{key: nodes[key] for key in "1234"}, "12": {"class_type": "GCFGScaleGrid", "inputs": settings | inputs}}


def test_scale_grid_with_a_vae(server):
    (picture,) = pictures(server, server.queue(scale_grid(graph(server), vae=["1", 2])), "12")
    assert picture.width > 128 and picture.height > 64


def test_scale_grid_without_a_vae_gives_the_latents_only(server):
    nodes = scale_grid(graph(server))
    nodes["6"] = {"class_type": "VAEDecode", "inputs": {"samples": ["12", 0], "vae": ["1", 2]}}
    nodes["7"] = {"class_type": "PreviewImage", "inputs": {"images": ["6", 0]}}
    assert len(pictures(server, server.queue(nodes), "7")) == 2
    nodes["7"]["inputs"]["images"] = ["12", 1]
    assert "7" not in server.queue(nodes)["outputs"]  # the frontend shows the message of the blocked output
