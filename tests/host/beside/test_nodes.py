"""Other packs' nodes on the base, on a concept and on both, before and after Apply GCFG to Model: one step against the
same step put together by hand from single predictions of the host's own sampler."""

import pytest

from gcfg_pack.gcfg.host.sampling.chain import Link
from gcfg_pack.gcfg.host.sampling.patch import apply
from harness import beside
from harness.sampling import relative

CFG = 2.5


@pytest.fixture
def patch(node, tiny):
    """Applies a node of ``beside.NODES`` to a MODEL."""
    def to(name, model, seed=0):
        pack, _, inputs = beside.NODES[name]
        if name == "NormalizedAttentionGuidance":
            inputs = {"negative": tiny.conditioning(8), **inputs}
        if name == "IPAdapterEmbeds":
            inputs = {"ipadapter": beside.ip_adapter(), "pos_embed": beside.draw(1, 16, seed=seed),
                      "neg_embed": beside.draw(1, 16, seed=seed + 1), **inputs}
        return node(pack, name, model=model, **inputs)[0]
    return to


@pytest.mark.parametrize("name", beside.NODES)
def test_on_the_base(tiny, base, concept, prompts, patch, one, close, name):
    positive, negative = prompts
    style, (pack, kind, _) = tiny.conditioning(3), beside.NODES[name]
    links = [Link(model=concept, scale=1.5), Link(conditioning=style, scale=0.5)]
    theirs, after = patch(name, base), patch(name, apply(base, links))  # before a run leaves object patches on it
    alone = one(theirs, positive, negative, CFG)
    assert relative(alone, one(base, positive, negative, CFG)) > 1e-3, "the node does nothing here"
    d0 = one(theirs, positive, negative, 0.0) if kind == "attention" else one(base, negative)
    ds, dc = one(theirs if kind == "attention" else base, style), one(concept, negative)
    expected = alone + 1.5 * (dc - d0) + 0.5 * (ds - d0)
    before = one(apply(theirs, links), positive, negative, CFG)
    close(pack, name, "the base, before Apply GCFG", relative(before, expected))
    after = one(after, positive, negative, CFG)
    close(pack, name, "the base, after Apply GCFG", relative(after, expected))


@pytest.mark.parametrize("name", [name for name, (_, kind, _) in beside.NODES.items() if kind == "attention"])
@pytest.mark.parametrize("prompted", [False, True], ids=["unconditional", "prompted"])
@pytest.mark.parametrize("both", [False, True], ids=["concept", "both"])
def test_attention_on_a_concept(tiny, base, concept, prompts, patch, one, close, name, prompted, both):
    positive, negative = prompts
    pack, text = beside.NODES[name][0], tiny.conditioning(3) if prompted else None
    theirs = patch(name, concept, seed=20)
    model = patch(name, base) if both else base
    d0, dc = one(model, positive, negative, 0.0), one(theirs, text or negative)
    assert relative(dc, one(concept, text or negative)) > 1e-3, "the node does nothing here"
    result = one(apply(model, [Link(model=theirs, conditioning=text, scale=1.5)]), positive, negative, CFG)
    where = ("base and concept" if both else "a concept") + (" with a prompt" if prompted else "")
    close(pack, name, where, relative(result, one(model, positive, negative, CFG) + 1.5 * (dc - d0)))


@pytest.mark.parametrize("name", [name for name, (_, kind, _) in beside.NODES.items() if kind == "cfg"])
def test_functions_of_a_whole_guidance_are_refused_on_a_concept(base, concept, patch, refused, name):
    with pytest.raises(ValueError, match="changes the guidance of a whole sampler"):
        apply(base, [Link(model=patch(name, concept), scale=1.5, name="Concept")])
    refused(beside.NODES[name][0], name, "a concept")
