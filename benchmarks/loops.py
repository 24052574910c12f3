"""The loops that ``training.py`` measures, each a function that builds its network and gives a ``Loop``."""

import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from sampling import build

from harness.find import find_host
from harness.server.process import start

BATCH, PICTURES = 4, 16
SHAPES = {"tiny": {"block_out_channels": (32,), "layers_per_block": 1, "down_block_types": ("CrossAttnDownBlock2D",),
                   "up_block_types": ("CrossAttnUpBlock2D",)}, "sd15": {}}


@dataclass
class Loop:
    """One step of a loop, the tensors that it keeps, its optimizer's name, and bytes in use before it was built."""

    step: Callable[[], object]
    kept: Callable[[], list]
    optimizer: str
    before: int


def ready(args: Namespace) -> None:
    """Import the host and what the loops need of the pack, so that it is in no loop's memory."""
    if "gcfg_pack" in sys.modules:
        return
    start(find_host(), cpu=args.device == "cpu")
    import gcfg_pack.gcfg.host.training.models.empty_prompt
    import gcfg_pack.gcfg.host.training.models.trainable
    import gcfg_pack.gcfg.training.run.loop  # noqa: F401
    import harness.models.families  # noqa: F401


def form_of(family: str, changes: dict, args: Namespace, now: Callable):
    """The form of a family's network that is trained, its settings and plan, and the bytes before it was built."""
    ready(args)
    from gcfg_pack.gcfg.host.training.models.empty_prompt import EmptyPrompt
    from gcfg_pack.gcfg.host.training.models.trainable import Trainable
    from gcfg_pack.gcfg.nulltext.attention import cross_attention_blocks
    from gcfg_pack.gcfg.training import memory
    from gcfg_pack.gcfg.training.settings import Settings
    from gcfg_pack.gcfg.training.weights import optimizers
    from harness.models import tiny
    from harness.models.families import FAMILIES

    settings = Settings(batch=BATCH, learning_rate=1e-4, **changes)
    plan, device = memory.plan(settings, None, optimizers.has_8_bit()), torch.device(args.device)
    if family in FAMILIES:
        base, empty = FAMILIES[family].model(0), FAMILIES[family].conditioning(0)
        before = now(args)
        return EmptyPrompt(base, empty, settings, plan, device), settings, plan, before
    base = tiny.sdxl(0) if family == "sdxl" else build(args.size, 0, torch.float32)
    width = {"sdxl": {"width": 2048, "pooled": 1280}}.get(family, {})
    features = {name: torch.zeros(1, 1, block.attn2.to_out[0].out_features)
                for name, block in cross_attention_blocks(base.model.diffusion_model).items()}
    before = now(args)
    return Trainable(base, features, tiny.conditioning(1, **width), settings, plan, device), settings, plan, before


def weights_of(form, settings) -> list:
    return [*form.network.parameters(), *(() if settings.method == "full" else form.parameters.values())]


def differentiably(step: Callable[[], object]) -> Callable[[], None]:
    """A step in the ways of the host that have a gradient."""
    from gcfg_pack.gcfg.host.training.models.network import differentiable

    def within() -> None:
        with differentiable():
            step()
    return within


def ours(family: str, changes: dict, args: Namespace, now: Callable) -> Loop:
    """The training of this pack."""
    form, settings, plan, before = form_of(family, changes, args, now)
    from gcfg_pack.gcfg.training.run.folder import RunFolder
    from gcfg_pack.gcfg.training.run.loop import Training

    folder = Path(tempfile.mkdtemp(prefix="gcfg-benchmark-"))
    latents = on_disk(folder, (form.latent_format.latent_channels, args.latent, args.latent))
    run = Training(form.task({}), latents, [], settings, plan, RunFolder(folder))

    def step() -> None:
        run.optimize()
        run.step += 1
    return Loop(differentiably(step), lambda: [*weights_of(form, settings), *run.optimizer.tensors().values(),
                                               *run.average.values.values()], plan.optimizer, before)


def on_disk(folder: Path, shape: tuple[int, ...]) -> list:
    """Random latents as a run finds them."""
    import numpy as np

    from gcfg_pack.gcfg.training.data.dataset import Latent

    found = []
    for k in range(PICTURES):
        np.save(folder / f"{k}.npy", np.random.default_rng(k).standard_normal((2, *shape)).astype(np.float16))
        found.append(Latent(str(k), str(folder / f"{k}.npy"), shape))
    return found


def plain(family: str, changes: dict, args: Namespace, now: Callable) -> Loop:
    """A loop by hand over the network that ``ours`` trains."""
    form, settings, plan, before = form_of(family, changes, args, now)
    parameters, losses = list(form.parameters.values()), form.task({}).losses
    latents = torch.randn(PICTURES, form.latent_format.latent_channels, args.latent, args.latent, device=args.device)

    def loss(rows):
        with torch.autocast(args.device, form.autocast, enabled=form.autocast is not None):
            return losses(latents[rows], torch.randn_like(latents[rows]), torch.rand(len(rows), device=args.device), [])
    average = [p.detach().to("cpu" if plan.ema_on_cpu else args.device, torch.float32, copy=True) for p in parameters]
    step, state = by_hand(parameters, average, loss, plan.optimizer, plan.micro_batch, settings.fused_backward)
    return Loop(differentiably(step), lambda: [*weights_of(form, settings), *state(), *average], plan.optimizer, before)


def diffusers(family: str, changes: dict, args: Namespace, now: Callable) -> Loop:
    """The same loop over diffusers' UNet: float32, AdamW, noise prediction."""
    from diffusers import UNet2DConditionModel
    from torch.nn import functional as F

    before = now(args)
    unet = UNet2DConditionModel(sample_size=args.latent, cross_attention_dim=768, attention_head_dim=8,
                                **SHAPES[args.size]).to(args.device)
    text = torch.zeros(BATCH, 77, 768, device=args.device)
    latents = torch.randn(PICTURES, 4, args.latent, args.latent, device=args.device)

    def loss(rows):
        noise, t = torch.randn_like(latents[rows]), torch.randint(0, 1000, (len(rows),), device=args.device)
        with torch.autocast(args.device, torch.bfloat16, enabled=args.device == "cuda"):
            output = unet(latents[rows] + noise, t, text[:len(rows)]).sample
        return F.mse_loss(output.float(), noise, reduction="none").flatten(1).mean(1)
    parameters = list(unet.parameters())
    average = [p.detach().to("cpu", copy=True) for p in parameters]
    step, state = by_hand(parameters, average, loss, "adamw", BATCH)
    return Loop(step, lambda: [*parameters, *average, *state()], "adamw", before)


def by_hand(parameters: list, average: list, loss: Callable, kind: str, micro_batch: int, fused: bool = False):
    """A step of a plain loop, and what its optimizers hold. Weights in bfloat16 are rounded stochastically, as ours.

    With ``fused`` every weight has an optimizer of its own, which a hook calls as soon as its gradient is there.
    """
    parts = [Part([p], kind) for p in parameters] if fused else [Part(parameters, kind)]
    for part in parts if fused else ():
        part.parameters[0].register_post_accumulate_grad_hook(lambda _, part=part: part.update())

    def step() -> None:
        for rows in torch.randperm(PICTURES)[:BATCH].split(micro_batch):
            (loss(rows).sum() / BATCH).backward()
        for part in () if fused else parts:
            part.update()
        with torch.no_grad():
            torch._foreach_lerp_(average, [p.to(a) for p, a in zip(parameters, average, strict=True)], 0.01)
    return step, lambda: [tensor for part in parts for state in part.optimizer.state.values()
                          for tensor in state.values() if isinstance(tensor, torch.Tensor)]


class Part:
    """Weights that are clipped and updated together by hand, and their optimizer."""

    def __init__(self, parameters: list, kind: str):
        self.parameters = parameters
        self.rounded = [p for p in parameters if p.dtype != torch.float32]
        self.masters = [torch.nn.Parameter(p.detach().float()) for p in self.rounded] or parameters
        self.optimizer = torch.optim.AdamW(self.masters, lr=1e-4, weight_decay=1e-2, fused=True) if kind == "adamw" \
            else torch.optim.Adafactor(self.masters, lr=1e-4, weight_decay=1e-2, eps=(None, 1.0))

    @torch.no_grad()
    def update(self) -> None:
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        pairs = list(zip(self.rounded, self.masters, strict=False))
        for parameter, master in pairs:
            master.data, master.grad = parameter.float(), parameter.grad.float()
        self.optimizer.step()
        for parameter, master in pairs:
            bits = master.data.view(torch.int32)
            bits += torch.randint_like(bits, 1 << 16)
            bits &= -0x10000
            parameter.copy_(master.data)
            master.data, master.grad = torch.empty(0), None
        for parameter in self.parameters:
            parameter.grad = None


LOOPS = {"ours": ours, "plain": plain, "diffusers": diffusers}
