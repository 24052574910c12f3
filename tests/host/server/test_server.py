"""The stock workflow runs on the tiny checkpoint over the HTTP API of a real server."""

import io

import pytest
from PIL import Image

from harness import workflow
from harness.server.serve import ServerError, pack_failed

pytestmark = [pytest.mark.server, pytest.mark.smoke]


def test_stock_workflow_makes_an_image(server):
    entry = server.queue(workflow.adapt(workflow.stock(), server.models, size=64, steps=4))
    (content,) = server.images(entry)
    image = Image.open(io.BytesIO(content))
    assert image.size == (64, 64)
    low, high = image.convert("L").getextrema()
    assert high - low > 60


def test_pack_is_loaded(server):
    assert not pack_failed(server.log)
    assert "custom_nodes/gcfg" in server.log


def test_uploaded_image_is_loaded(server):
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), (200, 30, 30)).save(buffer, "PNG")
    name = server.upload("red.png", buffer.getvalue())
    graph = {
        "1": {"class_type": "LoadImage", "inputs": {"image": name}},
        "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
    }
    (content,) = server.images(server.queue(graph))
    assert Image.open(io.BytesIO(content)).convert("RGB").getpixel((3, 3)) == (200, 30, 30)


def test_refused_workflow_says_why(server):
    broken = workflow.stock()
    with pytest.raises(ServerError, match=r"model\.safetensors"):
        server.queue(broken)
