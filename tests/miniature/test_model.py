"""The null-text miniature: its context is ignored, its features never move, files bring it back."""

import pytest
import torch

from gcfg.miniature import store, training
from gcfg.miniature.metrics import Classifier
from gcfg.miniature.model import Denoiser, caption_of
from gcfg.miniature.pictures import RING, VIOLET
from gcfg.nulltext.attention import cross_attention_blocks, features_of, is_null_text


@pytest.fixture(scope="module")
def base():
    torch.manual_seed(0)
    model = Denoiser()
    torch.nn.init.normal_(model.unet.out[-1].weight, std=0.1)  # zero at the start: the text would make no difference
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def concept(base):
    return training.fine_tune(base, seed=0, captioned=False, steps=1, batch=8)


def answer(model, caption):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn((2, 3, 16, 16), generator=generator)
    return model(x, torch.tensor([0.5, 3.0]), caption)


NULL, VIOLET_RING = torch.zeros(2, 3, dtype=torch.long), caption_of(torch.tensor([[RING, VIOLET, 0]])).expand(2, 3)


def test_the_null_text_model_ignores_its_context(base, concept):
    assert not torch.equal(answer(base, NULL), answer(base, VIOLET_RING))
    assert torch.equal(answer(concept, NULL), answer(concept, VIOLET_RING))


def test_training_moves_the_weights_and_leaves_the_features(base, concept):
    before, after = training.null_text_features(base, seed=0), features_of(concept.unet)
    assert before.keys() == after.keys() == cross_attention_blocks(base.unet).keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not torch.equal(concept.unet.into.weight, base.unet.into.weight)
    assert torch.equal(concept.text.words.weight, base.text.words.weight)
    assert not is_null_text(base.unet)


def test_training_is_deterministic(base):
    first, second = (training.fine_tune(base, seed=3, captioned=True, steps=2, batch=4) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_files_bring_the_models_back(tmp_path, base, concept):
    for name, model in (("base", base), ("concept", concept), (store.CLASSIFIER, Classifier())):
        store.save(model, tmp_path, name)
        again = store.load(tmp_path, name)
        assert all(torch.equal(a.half().float(), b) for a, b in
                   zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    assert is_null_text(store.load(tmp_path, "concept").unet)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no base.safetensors"):
        store.load(tmp_path, "base")


def test_shipped_models_are_small():
    files = list(store.SHIPPED.glob("*.safetensors"))
    assert {file.stem for file in files} == {*store.DENOISERS, store.CLASSIFIER}
    assert sum(file.stat().st_size for file in files) < 4_000_000
