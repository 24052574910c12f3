"""The shipped picture family, written out once for all tests here."""

import pytest

from harness.find import PACK, load_package

load_package("benchmarks", PACK / "benchmarks")
from benchmarks.pictures import expand, host, measure, shipped


@pytest.fixture(scope="session")
def family(tmp_path_factory):
    """MODELs, CLIP and VAE by the host's own loaders."""
    folder = tmp_path_factory.mktemp("pictures")
    files = expand.expand(folder)
    assert set(files) == set(expand.FILES) and all(path.is_file() for path in files.values())
    return host.Family.load(folder)


@pytest.fixture(scope="session")
def narrow():
    """The same at the size that is shipped."""
    return measure.Narrow.load(shipped.MODELS)
