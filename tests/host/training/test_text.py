"""The differentiable text encoder: to the bit what CLIP Text Encode gives, gradients to rows alone, known numbers."""

import comfy.sd1_clip
import pytest
import torch
from torch.nn import functional as F

from gcfg_pack.gcfg.host.training.models.text import TrainableText
from gcfg_pack.gcfg.nulltext.formats import checkpoint
from gcfg_pack.gcfg.training.losses.semantic import semantic_preservation
from harness.models.text import clip

CPU = torch.device("cpu")
TEXT = "a photo of a <0> dog, wearing a headphone"


def rows_like(text, count=1, seed=0):
    return {name: [torch.randn((count, encoder.table.shape[1]), generator=torch.Generator().manual_seed(seed))
                   * 0.3] for name, encoder in text.encoders.items()}


def encoded(stock, text):
    with torch.inference_mode():
        return stock.encode_from_tokens_scheduled(stock.tokenize(text))[0]


@pytest.mark.parametrize("kind, count, skip", [("sd15", 1, None), ("sd15", 2, -2), ("sdxl", 2, None)])
def test_training_sees_to_the_bit_what_the_user_gets_later(kind, count, skip, tmp_path):
    with torch.inference_mode():  # in which the executor loads models
        stock = clip(kind, seed=1, embeddings=str(tmp_path))
        if skip:
            stock.clip_layer(skip)
    before = {key: value.clone() for key, value in stock.cond_stage_model.state_dict().items()}
    with torch.inference_mode(False):
        text = TrainableText(stock, CPU)
        rows = rows_like(text, count)
        for parts in rows.values():
            parts[0].requires_grad_(True)
        ours = text.conditioning(TEXT, rows)[0]
        (ours[0].square().mean() + ours[1]["pooled_output"].square().mean()).backward()
    checkpoint.write(tmp_path / "joe.safetensors", {f"clip_{name}": r[0].detach() for name, r in rows.items()}, {})
    theirs = encoded(stock, TEXT.replace("<0>", "embedding:joe"))
    assert torch.equal(ours[0].detach(), theirs[0])
    assert torch.equal(ours[1]["pooled_output"].detach(), theirs[1]["pooled_output"])
    assert all(float(r[0].grad.abs().max()) > 0.0 for r in rows.values())
    after = stock.cond_stage_model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_plain_text_is_to_the_bit_the_hosts(kind):
    stock = clip(kind, seed=1)
    with torch.inference_mode(False):
        ours = TrainableText(stock, CPU).conditioning("two words", {})[0]
    theirs = encoded(stock, "two words")
    assert torch.equal(ours[0], theirs[0]) and torch.equal(ours[1]["pooled_output"], theirs[1]["pooled_output"])


def test_gradient_reaches_the_row_only():
    text = TrainableText(clip(seed=1), CPU)
    rows = rows_like(text)
    rows["l"][0].requires_grad_(True)

    def distance_from(word):
        return semantic_preservation(text.meaning([f"a photo of a <0> {word}"], rows),
                                     text.meaning([f"a photo of a {word}"], {}))
    distance = distance_from("dog")
    distance.backward()
    assert 0.0 < distance.item() <= 2.0 and float(rows["l"][0].grad.abs().max()) > 0.0
    assert all(not weight.requires_grad and weight.grad is None for weight in text.encoders["l"].weights.values())
    same = text.meaning(["a photo of a dog"], {})
    assert float(semantic_preservation(same, text.meaning(["a photo of a dog"], {}))) == pytest.approx(0.0, abs=1e-6)
    assert abs(distance_from("barn").item() - distance.item()) > 1e-4  # the class word counts


def test_meaning_is_the_end_of_the_text_whatever_is_beside_it_in_the_batch():
    text = TrainableText(clip(seed=1), CPU)
    alone = text.meaning(["a dog"], {})
    with_longer = text.meaning(["a dog", "a photo of a very large dog on a beach"], {})
    assert torch.allclose(alone[0], with_longer[0], atol=1e-5)
    _, pooled = encoded(clip(seed=1), "a dog")
    assert torch.allclose(alone, pooled["pooled_output"], atol=1e-5)  # SD1.5 pools before any projection


def test_too_long_a_text_and_other_encoders_are_refused():
    text = TrainableText(clip(seed=1), CPU)
    with pytest.raises(ValueError, match="at most 75 tokens fit"):
        text.conditioning("dog " * 80, {})

    class T5:
        def tokenize(self, words):
            return {"t5xxl": [[(0, 1.0)]]}
    with pytest.raises(ValueError, match="consists of t5xxl"):
        TrainableText(T5(), CPU)


@pytest.fixture(scope="module")
def toy():
    """The fixed three-layer encoder of width 64 in the host's own class, and its new row."""
    stock = clip("sd15", num_hidden_layers=3, hidden_size=64, intermediate_size=128, num_attention_heads=4)
    source = torch.Generator().manual_seed(0)
    body = stock.cond_stage_model.clip_l.transformer.text_model
    layers = "self_attn.k_proj self_attn.v_proj self_attn.q_proj self_attn.out_proj mlp.fc1 mlp.fc2".split()
    with torch.no_grad():
        for module in (m for m in body.modules() if hasattr(m, "bias") and m.bias is not None):
            module.bias.zero_()
        for module in (m for m in body.modules() if "LayerNorm" in type(m).__name__):
            module.weight.fill_(1.0)
        for table in (body.embeddings.token_embedding, body.embeddings.position_embedding):
            table.weight.copy_(torch.randn(table.weight.shape, generator=source) * 0.3)
        for layer in body.encoder.layers:
            for weight in (layer.get_submodule(name).weight for name in layers):
                weight.copy_(torch.randn(weight.shape, generator=source) * weight.shape[-1] ** -0.5)
    text = TrainableText(stock, CPU)
    return text, text.row("ktn")["l"] + 0.1 * torch.randn(64, generator=source)


def test_known_semantic_distance(toy):
    text, row = toy
    distance = semantic_preservation(text.meaning(["a photo of a <0> dog"], {"l": [row]}),
                                     text.meaning(["a photo of a dog"], {}))
    assert float(distance) == pytest.approx(0.19455898, abs=1e-6)


@pytest.mark.parametrize("at_new_word, expected", [(False, 0.28379875), (True, 0.37136471)])
def test_the_traps_of_the_official_code_give_its_numbers(toy, at_new_word, expected):
    """Its row has no position; with eos_token_id 2 it pools at the largest id, which is the new word's."""
    text, row = toy
    encoder = text.encoders["l"]
    positions = encoder.weights["transformer.text_model.embeddings.position_embedding.weight"]
    new, end = text.tokens("a photo of a <0> dog", {"l": [row]}, "l")
    plain, plain_end = text.tokens("a photo of a dog", {}, "l")
    place = next(k for k, token in enumerate(new) if not isinstance(token, int))
    new[place] = row[0] - positions[place]
    pooled_at = place if at_new_word else end
    plain_at = plain_end  # 49407 is the largest id there
    ours = encoder(encoder.embed(new), [pooled_at])[1]
    theirs = encoder(encoder.embed(plain), [plain_at])[1]
    assert float(1.0 - F.cosine_similarity(ours, theirs)) == pytest.approx(expected, abs=1e-6)


def test_the_host_tokenizer_is_that_of_the_numbers():
    assert comfy.sd1_clip.SDTokenizer().tokenizer("dog")["input_ids"][1:-1] == [1929]
