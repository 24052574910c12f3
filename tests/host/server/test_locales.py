"""The texts that the frontend shows: English as the nodes say it, other languages for inputs that there are."""

import json

import pytest

from harness.find import PACK
from harness.server.locales import english

pytestmark = pytest.mark.server

LOCALES = PACK / "locales"
MAIN = ("GCFGKSampler", "GCFGGuidance", "GCFGGuider", "GCFGPatchModel", "GCFGLoadConceptModel")


def read(language):
    return json.loads((LOCALES / language / "nodeDefs.json").read_text())


def test_english_is_what_the_nodes_say(server):
    ours, theirs = read("en"), english(server)
    assert ours == theirs, "run tools/make_locales.py"


@pytest.mark.parametrize("language", ["zh", "ja", "ko"])
def test_translations_fit_the_nodes(language):
    known, translated = read("en"), read(language)
    assert set(translated) == set(known)
    for name, node in translated.items():
        assert node["display_name"] != known[name]["display_name"]
        for group in ("inputs", "outputs"):
            assert set(node.get(group, {})) <= set(known[name][group])
    for name in MAIN:
        assert set(translated[name]["inputs"]) == set(known[name]["inputs"])
        tooltips = [entry["tooltip"] for entry in translated[name]["inputs"].values()]
        assert all([translated[name]["description"], *tooltips])


def test_the_server_hands_them_out(server):
    found = server.request("/api/i18n")
    for language in ("en", "zh", "ja", "ko"):
        assert found[language]["nodeDefs"]["GCFGGuidance"] == read(language)["GCFGGuidance"]
