"""Adapters: extraction is the best of its rank and says what it lost, files and LoRA form keep everything."""

import pytest
import torch

from gcfg.nulltext.formats import adapter, checkpoint, identify, keymap, provenance, stock_lora
from gcfg.nulltext.formats.adapter import Adapter
from gcfg.nulltext.formats.checkpoint import CheckpointError
from gcfg.nulltext.formats.identify import Kind


@pytest.fixture
def concept(base_shapes, base_weights, weights_of):
    shapes = keymap.null_text_shapes(base_shapes)
    change = weights_of(shapes, seed=5)
    return {key: base_weights.get(key, 0.0) + change[key] for key in shapes}


def same(a, b):
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


def distance(a, b):
    return max(float((a[key].double() - b[key].double()).abs().max()) for key in a)


def relative_error(delta, up, down):
    return float(torch.linalg.norm(delta - up @ down) / torch.linalg.norm(delta))


@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (7, 7), (1, 5), (5, 1)])
@pytest.mark.parametrize("rank", [1, 3, 100])
def test_low_rank_is_the_truncated_svd(shape, rank):
    delta = torch.randn(shape, dtype=torch.float64)
    up, down = adapter.low_rank(delta, rank)
    u, s, v = torch.linalg.svd(delta, full_matrices=False)
    kept = min(rank, len(s))
    assert torch.allclose(up @ down, u[:, :kept] @ torch.diag(s[:kept]) @ v[:kept], atol=1e-6)
    assert up.shape == (shape[0], kept) and down.shape == (kept, shape[1])


@pytest.mark.parametrize("shape", [(320, 700), (700, 320)])
@pytest.mark.parametrize("decay", [0.0, 0.5, 2.0])  # of the singular values: noise, a trained change, nearly low rank
def test_small_ranks_of_large_matrices_are_nearly_the_best(shape, decay):
    u, s, v = torch.linalg.svd(torch.randn(shape, dtype=torch.float64), full_matrices=False)
    s = s * torch.arange(1, len(s) + 1, dtype=torch.float64) ** -decay
    delta = u @ torch.diag(s) @ v
    up, down = adapter.low_rank(delta, 8)
    best = float((s[8:].square().sum() / s.square().sum()).sqrt())
    assert up.shape == (shape[0], 8) and best - 1e-9 <= relative_error(delta, up, down) < 1.01 * best
    assert all(torch.equal(a, b) for a, b in zip((up, down), adapter.low_rank(delta, 8), strict=True))


def test_large_singular_values_are_not_clamped():
    delta = torch.zeros(8, 8, dtype=torch.float64)
    delta[0, 0], delta[1, 1] = 100.0, 1e-3
    up, down = adapter.low_rank(delta, 2)
    assert torch.allclose(up @ down, delta, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("target", [0.5, 0.2, 0.01, 0.0])
def test_target_error_takes_the_smallest_rank(target):
    delta = torch.randn(12, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    up, down = adapter.low_rank(delta, None, target)
    assert relative_error(delta, up, down) <= target + 1e-6
    rank = up.shape[1]
    assert rank == 1 or relative_error(delta, *adapter.low_rank(delta, rank - 1)) > target


def test_extraction_of_full_rank_is_the_concept(base_weights, concept, base_shapes):
    made, report = adapter.extract(base_weights, concept, rank=10_000)
    made.check(base_shapes)
    assert distance(concept, made.merged(base_weights)) < 1e-5
    assert report.total < 1e-5
    assert all(torch.equal(made.features[block], concept[keymap.feature_key(block)]) for block in made.features)


def test_extraction_reports_its_errors(base_weights, concept):
    made, report = adapter.extract(base_weights, concept, rank=4)
    merged = made.merged(base_weights)
    lost = changed = 0.0
    for entry in report.layers:
        key = f"{entry.layer}.weight"
        change = (concept[key] - base_weights[key]).double()
        miss = (concept[key] - merged[key]).double()
        assert entry.error == pytest.approx(float(miss.norm() / change.norm()), rel=1e-3, abs=1e-6)
    for key in merged:
        if not key.endswith("null_text_feature"):
            lost += float((concept[key] - merged[key]).double().square().sum())
            changed += float((concept[key] - base_weights[key]).double().square().sum())
    assert report.total == pytest.approx((lost / changed) ** 0.5, rel=1e-3)
    assert f"{report.total:.2%}" in str(report)
    assert adapter.extract(base_weights, concept, rank=8)[1].total < report.total


def test_every_linear_and_convolution_layer_gets_a_pair(base_weights, concept):
    made, report = adapter.extract(base_weights, concept, rank=2)
    layers = {key.removesuffix(".weight") for key, value in concept.items() if value.ndim >= 2 and "attn2" not in key}
    assert set(made.pairs) == layers and len(report.layers) == len(layers)
    up, down = made.pairs["input_blocks.0.0"]
    assert up.shape == (8, 2) and down.shape == (2, 4, 3, 3)


def test_the_whole_difference_is_the_concept(base_weights, concept, base_shapes):
    made = adapter.difference(base_weights, concept)
    made.check(base_shapes)
    assert not made.pairs and distance(concept, made.merged(base_weights)) < 1e-6
    assert adapter.difference(base_weights, base_weights) == Adapter()


def test_equal_weights_give_an_empty_adapter(base_weights):
    made, report = adapter.extract(base_weights, base_weights)
    assert made == Adapter() and report.total == 0.0


def test_progress_and_half_precision(base_weights, concept):
    calls = []
    made, report = adapter.extract(base_weights, concept, rank=10_000, dtype=torch.float16,
                                   progress=lambda done, total: calls.append((done, total)))
    assert calls[-1][0] == calls[-1][1] == len(calls)
    assert {up.dtype for up, _ in made.pairs.values()} == {torch.float16}
    assert 1e-6 < report.total < 1e-2


def test_strength_scales_the_weights_and_not_the_features(base_weights, concept):
    made, _ = adapter.extract(base_weights, concept, rank=3)
    merged = {s: made.merged(base_weights, s) for s in (0.0, 0.5, 1.0)}
    for key, half in merged[0.5].items():
        if key.endswith("null_text_feature"):
            assert torch.equal(half, merged[1.0][key]) and torch.equal(half, merged[0.0][key])
        else:
            assert torch.allclose(half, (merged[0.0][key] + merged[1.0][key]) / 2, atol=1e-5)
            assert torch.equal(merged[0.0][key], base_weights[key])


def test_file_round_trip_is_bit_equal(base_weights, concept, tmp_path):
    made, _ = adapter.extract(base_weights, concept, rank=3, dtype=torch.bfloat16)
    path = tmp_path / "adapter.safetensors"
    checkpoint.write(path, made.to_tensors(), provenance.Provenance(notes="n").to_metadata("adapter"))
    tensors, metadata = checkpoint.read(path)
    assert identify.identify(tensors) is Kind.ADAPTER
    assert same(Adapter.from_tensors(tensors).to_tensors(), made.to_tensors())
    assert provenance.Provenance.from_metadata(metadata).notes == "n"


def test_stock_lora_form_and_back(base_weights, concept, base_shapes):
    made, _ = adapter.extract(base_weights, concept, rank=3)
    tensors = stock_lora.to_stock_lora(made, base_weights)
    assert identify.identify(tensors) is Kind.STOCK_LORA
    back = stock_lora.from_stock_lora(tensors, base_weights)
    back.check(base_shapes)
    assert distance(made.to_tensors(), back.to_tensors()) < 1e-6
    assert same(dict(made.deltas), dict(back.deltas))


def test_alpha_is_folded_in(base_weights, concept):
    made, _ = adapter.extract(base_weights, concept, rank=4)
    tensors = stock_lora.to_stock_lora(made, base_weights)
    plain = stock_lora.from_stock_lora(tensors, base_weights).pairs
    for key in list(tensors):
        if key.endswith("lora_up.weight"):
            tensors[key.replace("lora_up.weight", "alpha")] = torch.tensor(2.0)
    scaled = stock_lora.from_stock_lora(tensors, base_weights).pairs
    assert all(torch.equal(scaled[layer][0], plain[layer][0] * 0.5) for layer in plain)


def test_lora_files_of_others_are_refused(base_weights, concept):
    made, _ = adapter.extract(base_weights, concept, rank=2)
    tensors = stock_lora.to_stock_lora(made, base_weights)
    with pytest.raises(CheckpointError, match="lora_unet_x.*Load LoRA"):
        stock_lora.from_stock_lora(tensors | {"lora_unet_x.lora_up.weight": torch.zeros(1)}, base_weights)
    key = next(key for key in tensors if key.endswith("set_weight"))
    with pytest.raises(CheckpointError, match="sets a weight"):
        stock_lora.from_stock_lora(tensors | {key: torch.ones(1, 1)}, base_weights)
    with pytest.raises(CheckpointError, match="lora_down.weight' is missing"):
        stock_lora.from_stock_lora({k: v for k, v in tensors.items() if "lora_down" not in k}, base_weights)


def test_an_adapter_of_another_base_is_refused(base_weights, concept, configs, shapes_of):
    made, _ = adapter.extract(base_weights, concept, rank=2)
    with pytest.raises(CheckpointError, match="does not fit the base model.*another architecture"):
        made.check(shapes_of(configs["KOALA"]))


def test_broken_adapters_are_refused(base_weights, base_shapes, concept):
    made, _ = adapter.extract(base_weights, concept, rank=2)
    tensors = made.to_tensors()
    with pytest.raises(CheckpointError, match="down' is missing"):
        Adapter.from_tensors({k: v for k, v in tensors.items() if k != "out.2.down"})
    broken = {
        "no counterpart": tensors | {"out.2.up": torch.zeros(4, 3)},
        "no.such.layer": tensors | {"no.such.layer.up": torch.zeros(4, 2), "no.such.layer.down": torch.zeros(2, 4)},
        "NaN": tensors | {"out.2.up": torch.full((4, 2), float("nan"))},
        "is int8": tensors | {"out.2.up": torch.zeros(4, 2, dtype=torch.int8)},
        "are zero": {k: v * 0 if k.endswith("null_text_feature") else v for k, v in tensors.items()},
    }
    del tensors["middle_block.1.transformer_blocks.0.attn2.null_text_feature"]
    broken["middle_block.1"] = tensors
    for words, content in broken.items():
        with pytest.raises(CheckpointError, match=words):
            Adapter.from_tensors(content).check(base_shapes)
