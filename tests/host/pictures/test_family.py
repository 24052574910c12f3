"""The picture family in the host's own loaders: the same function as the narrow weights that are shipped."""

from pathlib import Path

import nodes
import pytest
import torch
import torch.nn.functional as F

from harness.find import PACK, load_package

load_package("benchmarks", PACK / "benchmarks")
from benchmarks.pictures import expand, host, sampling, shipped, words
from benchmarks.pictures.control import edges
from gcfg.miniature import recipes
from gcfg_pack.gcfg.host.concepts.concept import CONCEPT
from gcfg_pack.gcfg.nulltext.formats.identify import Kind

if not (shipped.MODELS / "lora.safetensors").is_file():
    pytest.skip("the shipped weights are not in this checkout (benchmarks/pictures/models)", allow_module_level=True)

PROMPTS = ["smiling face with sunglasses noto", "", "a word that nobody knows", "Crying CAT, flat"]


def test_the_stock_text_node_gives_what_training_saw(family, narrow):
    for prompt, expected in zip(PROMPTS, narrow.features(PROMPTS), strict=True):
        found = family.text(prompt)[0][0]
        assert found.shape == (1, 77, 768)
        assert (found[0] - expected.repeat(1, 12)).abs().max() < 1e-4


def test_the_stock_autoencoder_is_the_narrow_one(family, narrow):
    torch.manual_seed(0)
    pictures = torch.rand(2, 64, 64, 3)
    latents = narrow.vae.encoder(pictures.movedim(3, 1))
    found = family.vae.encode(pictures) * expand.SD15_SCALE
    assert (found.cpu() - latents).abs().max() < 1e-2
    drawn = family.vae.decode(latents / expand.SD15_SCALE).cpu()
    assert (drawn - narrow.vae.decoder(latents).movedim(1, 3).clamp(0, 1)).abs().max() < 1e-2


def test_kinds(family):
    assert type(family.base.model).__name__ == "BaseModel"
    assert family.concept.attachments[CONCEPT].kind is Kind.NULL_TEXT
    assert family.lora.patches


@pytest.mark.parametrize("recipe", ["base", "gcfg"])
def test_the_host_draws_what_the_narrow_models_draw(family, narrow, recipe):
    prompt = "smiling face with sunglasses"
    if recipe == "base":
        found, expected = family.stock(family.base, prompt, 1, 3.0), recipes.base_cfg(3.0)
    else:
        found, expected = family.gcfg(family.concept, prompt, 1, 1.5, 2.0), recipes.gcfg(1.5, 2.0)
    texts = {recipes.CAPTION: narrow.features([prompt]), "unconditional": narrow.features([""])}
    latents = sampling.sample(narrow.models, expected, texts, sampling.noise_of(1), host.STEPS)
    drawn = narrow.vae.decoder(latents).clamp(0, 1)[0].movedim(0, 2)
    assert (found - drawn).abs().mean() < 0.02  # the narrow ones sample in bfloat16


def test_the_lora_is_the_concept_whatever_the_prompt(family):
    some, other = (family.stock(family.lora, prompt, 3, 1.0) for prompt in ("angry face", "fox"))
    assert torch.allclose(some, other, atol=1e-4)


def test_the_table_of_words_reads_as_the_stock_tokenizer(narrow):
    stock, table = words.tokenizer(), shipped.words()
    for text in ("smiling face with heart-eyes twemoji", "", "face with medical mask noto"):
        assert table(text) == stock(text)
    for text in PROMPTS:  # unknown words have other ids, but the same row
        found, expected = (narrow.text.rows_of(torch.tensor(ids(text))) for ids in (table, stock))
        assert torch.equal(found, expected)


def test_a_picture_follows_the_edges_of_another(family):
    """A prompt that leaves it open, along the edges of sunglasses, by the host's ControlNet nodes; and without."""
    (net,) = nodes.ControlNetLoader().load_controlnet(Path(expand.FILES["control"]).name)
    hint = edges(family.stock(family.base, "smiling face with sunglasses", 1, 3.0).movedim(2, 0)[None])
    shares = []
    for strength in (0.0, 1.0):
        led = nodes.ControlNetApplyAdvanced().apply_controlnet(family.text("face"), family.text(""), net,
                                                               hint.movedim(1, 3), strength, 0.0, 1.0)
        latent = {"samples": torch.zeros(1, 4, 8, 8)}
        (out,) = nodes.KSampler().sample(family.base, 2, host.STEPS, 3.0, host.SAMPLER, host.SCHEDULER, *led, latent)
        near = F.max_pool2d(edges(family.picture(out).movedim(2, 0)[None]), 3, 1, 1)  # to a pixel
        shares.append(float((near * hint).sum() / hint.sum()))
    assert shares[0] < 0.6 < 0.9 < shares[1], shares
