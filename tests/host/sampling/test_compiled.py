"""torch.compile: what was compiled before a run must not run in place of what the run needs."""

import comfy.sd
import pytest
import torch

from harness.sampling import gcfg, relative, stock

compiling = pytest.importorskip("comfy_api.torch_helpers.torch_compile")


@pytest.mark.slow
def test_a_lora_over_one_copy_of_a_model_that_was_compiled_before(tiny, base, prompts):
    """Its rows ran the graph of the plain base, and the concept was dropped in silence: 0.0 -> as without compiling."""
    positive, negative = prompts

    def compiled(model):
        clone = model.clone()
        compiling.set_torch_compile_wrapper(clone, backend="eager")
        return clone

    def lora(model):
        return comfy.sd.load_lora_for_models(model, None, tiny.lora(model, 3), 1.0, 0.0)[0]
    short = dict(steps=1)
    torch._dynamo.reset()
    plain = stock(compiled(base), positive, negative, tiny.latent(), **short)
    result = gcfg(base, positive, negative, tiny.latent(), compiled(lora(base)), **short)
    expected = gcfg(base, positive, negative, tiny.latent(), lora(base), **short)
    assert relative(expected, plain) > 0.01
    assert relative(result, expected) < 1e-3
    assert relative(stock(compiled(base), positive, negative, tiny.latent(), **short), plain) < 1e-4
