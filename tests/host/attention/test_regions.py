"""Regions from the words of a prompt, on a text encoder and a U-Net of the host."""

import pytest
import torch
import torch.nn.functional as F
from comfy.sd1_clip import SD1Tokenizer
from comfy.text_encoders.flux import FluxTokenizer
from comfy.text_encoders.sd3_clip import SD3Tokenizer
from comfy_execution.graph import ExecutionBlocker

from gcfg_pack.gcfg.attention.regions import word_attention
from gcfg_pack.gcfg.host.attention.regions import first_steps, word_maps, word_positions
from gcfg_pack.nodes.attention import GCFGBlendMasks
from harness.models.families import FAMILIES
from harness.sampling import stock


class Clip:
    """The host's tokenizer, without the weights of an encoder."""

    def __init__(self, kind=SD1Tokenizer):
        self.tokenizer = kind()

    def tokenize(self, text):
        return self.tokenizer.tokenize_with_weights(text)


def test_words_are_found_wherever_they_stand():
    positions = word_positions(Clip(), "a (cat:1.2) and a wizard, the cat sleeping", ["cat", "wizard"], 77)
    assert positions == [[2, 8], [5]]


def test_words_in_the_prompts_of_transformers():
    """SD3's conditioning is CLIP's tokens and then T5's, where it has a T5; Flux has T5's alone."""
    prompt, words = "a cat and a wizard", ["cat", "wizard"]
    for tokenizer, length, expected in (
            (SD3Tokenizer, 77, [[2], [5]]), (SD3Tokenizer, 154, [[2, 79], [5, 83]]), (FluxTokenizer, 256, [[2], [6]])):
        assert word_positions(Clip(tokenizer), prompt, words, length) == expected
    with pytest.raises(ValueError, match="this text encoder \\(l, t5xxl\\); draw the masks"):
        word_positions(Clip(FluxTokenizer), prompt, words, 99)


def test_a_word_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="'dog' does not occur in the prompt 'a cat'"):
        word_positions(Clip(), "a cat", ["dog"], 77)


def test_maps_are_the_softmax_of_the_cross_attention(tiny, base, prompts):
    """Against attn2 hooks: the same queries and keys, recorded from the projections themselves."""
    positive, negative = prompts
    recorded, handles = [], []
    for name, module in base.model.diffusion_model.named_modules():
        if name.endswith("attn2.to_q") or name.endswith("attn2.to_k"):
            handles.append(module.register_forward_hook(lambda m, i, out, name=name: recorded.append((name, out))))
    maps = word_maps(base, [[1], [2, 3]], 8, lambda m: stock(m, positive, negative, tiny.latent(batch=2), steps=2))
    for handle in handles:
        handle.remove()
    expected = []
    for (query, q), (_, k) in zip(recorded[::2], recorded[1::2], strict=True):
        assert query.endswith("to_q")
        weights = word_attention(q[2:], k[2:], 8, [[1], [2, 3]])  # the host puts the negative first
        expected.append(F.interpolate(weights.unflatten(-1, (8, 8)), (8, 8), mode="bilinear"))
    assert maps.shape == (2, 2, 8, 8) and len(expected) == 2 * 4
    assert torch.allclose(maps, torch.stack(expected).mean(0), atol=1e-6)


def test_watching_changes_nothing(tiny, base, prompts):
    latents = []
    word_maps(base, [[1]], 8, lambda m: latents.append(stock(m, *prompts, tiny.latent())))
    assert torch.equal(latents[0], stock(base, *prompts, tiny.latent()))


@pytest.mark.parametrize("name", ["Stable Diffusion 3.5", "Flux.1"])
def test_maps_of_a_joint_attention(name):
    """Against the host's own attention over values that are 1 at the word and 0 elsewhere."""
    family = FAMILIES[name]
    base, positive, negative = family.model(1), family.conditioning(1), family.conditioning(2)
    found = []

    def recorded(function, q, k, v, heads, *args, **kwargs):
        if q.shape[-2] == 8 + 16:
            tokens = 2 if kwargs.get("skip_reshape") else 1
            word = torch.zeros_like(v).index_fill_(tokens, torch.tensor([2, 3]), 1.0)
            out = function(q, k, word, heads, *args, **kwargs)
            if q.shape[0] == 2:
                found.append(out[1:, 8:].mean(dim=-1))  # the host puts the negative first
        return function(q, k, v, heads, *args, **kwargs)
    watched = base.clone()
    watched.model_options["transformer_options"]["optimized_attention_override"] = recorded
    latents = family.latents()
    maps = word_maps(watched, [[2, 3]], 8, lambda m: stock(m, positive, negative, latents, steps=2))
    expected = torch.stack([F.interpolate(each.view(1, 1, 4, 4), (8, 8), mode="bilinear") for each in found]).mean(0)
    assert found and maps.shape == (1, 1, 8, 8) and torch.allclose(maps, expected, atol=1e-5)


def test_other_families_are_refused(tiny):
    with pytest.raises(ValueError, match="Draw the masks instead"):
        word_maps(FAMILIES["Lumina 2"].model(), [[1]], 8, lambda m: None)


def test_first_steps():
    assert [first_steps(25, part) for part in (0.0, 0.3, 1.0)] == [1, 8, 25]


def test_masks_of_other_sizes_share_the_picture():
    left, right = torch.zeros(1, 16, 16), torch.zeros(1, 32, 32)
    left[..., :10], right[..., 16:] = 1, 1
    one, two, third, rest = GCFGBlendMasks.execute(left, right, 0.0).args
    assert one.shape == two.shape == rest.shape == (1, 16, 16)
    assert torch.allclose(one + two + rest, torch.ones(1, 16, 16)) and one[0, 0, 9] == two[0, 0, 9] == 0.5
    assert isinstance(third, ExecutionBlocker)


def test_batches_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="batches of 2, 3"):
        GCFGBlendMasks.execute(torch.zeros(2, 8, 8), torch.zeros(3, 8, 8), 0.0)
