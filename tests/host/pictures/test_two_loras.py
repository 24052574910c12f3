"""Two LoRAs, two masks, one picture of the shipped family: each is itself on its side, in seconds.

The LoRAs of a green fox and an orange frog lie here (``benchmarks.pictures.subjects`` trains them): colours say what
bleeds. benchmarks/subjects measures it on more of them, two heads in a picture.
"""

from pathlib import Path

import comfy.sd
import pytest
import torch

from harness.find import PACK, load_package

load_package("benchmarks", PACK / "benchmarks")
from benchmarks.pictures import expand, host, shipped
from gcfg.nulltext.formats.stock_lora import to_stock_lora
from gcfg_pack.gcfg.host.sampling.chain import Link
from harness.sampling import gcfg, stock

if not (shipped.MODELS / "lora.safetensors").is_file():
    pytest.skip("the shipped weights are not in this checkout (benchmarks/pictures/models)", allow_module_level=True)

LORAS = Path(__file__).with_name("loras")
NAMES, CAPTION = ("green_fox", "orange_frog"), "face"
SAMPLING = {"sampler": host.SAMPLER, "scheduler": host.SCHEDULER, "steps": 8, "seed": 3}
SCALE = 2.0  # of benchmarks/subjects; of the stock sampler twice that


@pytest.fixture(scope="module")
def tuned(family):
    """The base with one LoRA, with the other, and with both."""
    wide = expand.unet(shipped.unet("base"))
    files = [to_stock_lora(expand.adapter(shipped.read(name, LORAS)), wide) for name in NAMES]

    def load(model, file):
        return comfy.sd.load_lora_for_models(model, None, file, 1.0, 0.0)[0]
    one, two = (load(family.base, file) for file in files)
    return one, two, load(one, files[1])


def test_two_loras_do_not_bleed(family, tuned):
    """Merged, both sides are a mixture; with a masked guidance for each, a side is as its LoRA alone makes it."""
    text, null, latent = family.text(CAPTION), family.text(""), {"samples": torch.zeros(1, 4, 8, 8)}
    left = torch.zeros(1, 64, 64)
    left[..., :32] = 1
    links = [Link(model=model, conditioning=text, scale=SCALE, mask=mask)
             for model, mask in zip(tuned, (left, 1 - left), strict=False)]
    latents = [*(stock(model, text, null, latent, 2 * SCALE, **SAMPLING) for model in tuned),
               gcfg(family.base, null, null, latent, control_scale=0.0, links=links, **SAMPLING)]
    pictures = [family.picture({"samples": made}) for made in latents]
    # the mean colours (2, 3) of the left and of the right half
    green, orange, merged, ours = (picture.detach().unflatten(1, (2, 32)).mean((0, 2)) for picture in pictures)

    def greenness(found):
        """1 where a side is as green as under that LoRA alone, 0 where it is as orange as under the other."""
        way = green - orange
        return ((found - orange) * way).sum(1) / way.square().sum(1)
    each_itself = torch.tensor([1.0, 0.0])
    assert (greenness(ours) - each_itself).abs().max() < 0.25
    assert (greenness(merged) - each_itself).abs().mean() > 0.35
