"""Workflows adapted to the tiny models."""

import json

import pytest
from PIL import Image

from harness import workflow
from harness.models.files import ModelFiles

TINY = ModelFiles("c.ckpt", "u.ckpt", "", "n.pth")


def test_adapt_replaces_models_size_and_steps():
    graph = workflow.stock()
    graph["5"]["inputs"] |= {"start_at_step": 5, "end_at_step": 10000}
    graph["8"] = {"class_type": "LoraLoader", "inputs": {"lora_name": "mine", "model": ["1", 0]}}
    before = json.dumps(graph)
    adapted = workflow.adapt(graph, TINY, size=64, steps=4)
    assert json.dumps(graph) == before
    assert adapted["1"]["inputs"]["ckpt_name"] == "c.ckpt"
    assert adapted["8"]["inputs"]["lora_name"] == "mine"
    assert (adapted["4"]["inputs"]["width"], adapted["4"]["inputs"]["height"]) == (64, 64)
    sampler = adapted["5"]["inputs"]
    assert (sampler["steps"], sampler["start_at_step"], sampler["end_at_step"]) == (4, 1, 10000)


def test_adapt_keeps_ratios():
    graph = workflow.stock()
    graph["4"]["inputs"] |= {"width": 1024, "height": 512}
    graph["8"] = {"class_type": "SolidMask", "inputs": {"value": 1.0, "width": 512, "height": 512}}
    adapted = workflow.adapt(graph, TINY, size=128)
    sizes = [(adapted[key]["inputs"]["width"], adapted[key]["inputs"]["height"]) for key in ("4", "8")]
    assert sizes == [(128, 64), (64, 64)]


def test_adapt_keeps_what_is_not_named():
    assert workflow.adapt(workflow.stock(), TINY)["4"] == workflow.stock()["4"]


def test_provide_images_draws_only_missing_ones(tmp_path):
    graph = {"1": {"class_type": "LoadImage", "inputs": {"image": "folder/photo.png"}}}
    (path,) = workflow.provide_images(graph, tmp_path)
    assert Image.open(path).mode == "RGBA"
    assert workflow.provide_images(graph, tmp_path) == []


def test_graph_of_the_frontend_is_refused(tmp_path):
    path = tmp_path / "graph.json"
    path.write_text(json.dumps({"nodes": [], "links": []}))
    with pytest.raises(ValueError, match="API format"):
        workflow.read(path)
