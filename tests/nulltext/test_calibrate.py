"""Mean and residual are those of the definition, however the outputs are cut into calls."""

import pytest
import torch

from gcfg.nulltext import calibrate


@pytest.mark.parametrize("parts", [1, 2, 7])
def test_mean_and_residual_by_definition(parts):
    outputs = torch.randn(14, 5, 6, generator=torch.Generator().manual_seed(0)) + 3.0
    mean = calibrate.BlockMean()
    for part in outputs.chunk(parts):
        mean.add(part)
    flat = outputs.reshape(-1, 6).double()
    constant = flat.mean(0)
    expected = ((flat - constant).square().sum() / flat.square().sum()).sqrt()
    assert torch.allclose(mean.mean.double(), constant, atol=1e-6)
    assert mean.residual == pytest.approx(float(expected), rel=1e-5)


def test_constant_outputs_have_no_residual():
    mean = calibrate.BlockMean()
    for _ in range(3):
        mean.add(torch.full((2, 4, 6), 0.3, dtype=torch.bfloat16))
    assert mean.residual < 1e-6
    assert torch.allclose(mean.mean, torch.full((6,), 0.3).bfloat16().float())


def test_half_precision_outputs_are_averaged_in_float32():
    outputs = torch.full((4, 4096, 2), 1000.0, dtype=torch.float16)  # the sum overflows float16
    mean = calibrate.BlockMean()
    mean.add(outputs)
    assert torch.equal(mean.mean, torch.full((2,), 1000.0))


def test_silent_and_broken_blocks_are_named():
    with pytest.raises(RuntimeError, match="mid did not run"):
        calibrate.features({"mid": calibrate.BlockMean()})
    broken = calibrate.BlockMean()
    broken.add(torch.full((1, 1, 2), float("nan")))
    with pytest.raises(RuntimeError, match="mid gave NaN"):
        calibrate.features({"mid": broken})


def test_latents_are_seeded_and_of_unit_variance():
    pictures, noise = calibrate.draw(8, 4, 16, seed=3)
    assert torch.equal(torch.stack((pictures, noise)), torch.stack(calibrate.draw(8, 4, 16, seed=3)))
    assert not torch.equal(noise, calibrate.draw(8, 4, 16, seed=4)[1]) and not torch.equal(pictures, noise)
    assert pictures.shape == (8, 4, 16, 16) and float(noise.std()) == pytest.approx(1.0, rel=0.05)


def test_table_names_every_block():
    text = calibrate.table({"a": 0.25, "b": 0.75})
    assert text.splitlines()[0].strip().startswith("0.5000") and len(text.splitlines()) == 3
