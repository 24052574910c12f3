"""A real ComfyUI in the test process: the pack as ``gcfg_pack``, tiny models, a server. Skipped without a host.

Tests here may import ``comfy`` and ``gcfg_pack`` at module level: where there is no host they are never imported.
``GCFG_REQUIRE_HOST=1`` turns a missing host into an error, ``GCFG_TEST_DEVICE=cuda`` lets the host use its GPU.
"""

import os

import pytest

from harness.find import NO_HOST, HostNotFound, find_host
from harness.server.process import start

try:
    HOST = find_host()
except HostNotFound as error:
    raise pytest.UsageError(str(error)) from error
if HOST is None and os.environ.get("GCFG_REQUIRE_HOST") == "1":
    raise pytest.UsageError(f"GCFG_REQUIRE_HOST=1, but {NO_HOST}")


if HOST is not None:
    start(HOST, cpu=os.environ.get("GCFG_TEST_DEVICE", "cpu") == "cpu")


class _WithoutHost(pytest.Module):
    """A test module that is reported as skipped instead of being imported."""

    def collect(self):
        pytest.skip(NO_HOST, allow_module_level=True)


def pytest_pycollect_makemodule(module_path, parent):
    if HOST is None:
        return _WithoutHost.from_parent(parent, path=module_path)
    return None


def pytest_collection_modifyitems(items):
    for item in items:
        if "/tests/host/" in item.path.as_posix():
            item.add_marker(pytest.mark.host)


@pytest.fixture(scope="session")
def host():
    """The folder of the ComfyUI under test."""
    return HOST


@pytest.fixture(scope="session")
def tiny():
    """The builders of ``harness.tiny``: genuine models of the host, from a seed."""
    from harness.models import tiny

    return tiny


@pytest.fixture
def base(tiny):
    """A fresh base model of the Stable Diffusion 1.5 class."""
    return tiny.sd15(seed=1)


@pytest.fixture
def concept(tiny):
    """A fresh concept model: the architecture of ``base`` with other weights."""
    return tiny.sd15(seed=2)


@pytest.fixture
def one(tiny):
    """One step of the stock sampler: with cfg 1 the prediction for the positive, with 0 that for the negative."""
    from harness.sampling import stock

    def step(model, positive, negative=None, cfg=1.0):
        return stock(model, positive, negative or tiny.conditioning(2), tiny.latent(seed=9), cfg=cfg, steps=1)
    return step


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """A running server of the host with the pack in it; ``server.models`` names the tiny model files."""
    from harness.models import transformers
    from harness.models.files import write_models
    from harness.server.serve import serve

    folder = tmp_path_factory.mktemp("server")
    models = write_models(folder / "models")
    transformers.write(folder)
    with serve(HOST, folder) as running:
        running.models = models
        yield running


@pytest.fixture
def prompts(tiny):
    """Positive and negative conditioning for ``base``."""
    return tiny.conditioning(1), tiny.conditioning(2)


@pytest.fixture
def text(tiny):
    """One conditioning for ``base``."""
    return tiny.conditioning(1)


@pytest.fixture
def null_text(tiny):
    """A null-text model with weights that are not the base's."""
    from gcfg_pack.gcfg.host.concepts import convert

    return convert.convert(tiny.sd15(seed=2), tiny.conditioning(5), latents=2, size=8)[0]
