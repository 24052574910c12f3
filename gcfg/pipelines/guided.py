"""A recipe in a diffusers pipeline: while ``guided`` lasts, the pipeline's UNet answers with the guided prediction.

Works in every pipeline whose UNet predicts noise, velocity or the clean latent from text (Stable Diffusion 1, 2 and XL;
text to image, image to image, ControlNet, modular pipelines), with each of their schedulers.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from diffusers.hooks import HookRegistry, ModelHook
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor

from ..guidance import BASE, Momentum, Prediction, Progress, Recipe, combine, plan
from ..guidance.plan import in_zero_init
from ..guidance.presets import POSITIVE

HOOK = "gcfg"
RESIDUALS = ("down_block_additional_residuals", "mid_block_additional_residual",
             "down_intrablock_additional_residuals")
"""What a ControlNet or adapter adds; it was computed with the pipeline's own prompt and stays with it."""


@contextmanager
def guided(pipeline, recipe: Recipe, models: Mapping[str, Callable] | None = None,
           conditionings: Mapping[str, Mapping] | None = None, masks: Mapping[str, Tensor] | None = None
           ) -> Iterator[None]:
    """Within, ``pipeline(prompt, guidance_scale=1.0)`` samples with a recipe (arXiv 2312.08195).

    Args:
        pipeline: with ``unet`` and ``scheduler``. Its UNet is the model "base", its prompt the conditioning "positive".
        models: further UNets by the names that the recipe gives them, in the same latent space and parameterisation.
        conditionings: by name, inputs of the UNet that replace those of the pipeline's prompt; ``text`` makes them.
        masks: by name, where a guidance acts; each broadcastable to the latents (B, C, H, W).

    Raises:
        ValueError: the recipe names what is not given or balances against nothing, a model works in another latent
            space, the pipeline guides already (guidance_scale above 1), or its scheduler has no noise levels of the
            diffusion kind.
    """
    models, conditionings, masks = dict(models or {}), dict(conditionings or {}), dict(masks or {})
    _check(pipeline.unet, recipe, models, conditionings, masks)
    registry = HookRegistry.check_if_exists_or_initialize(pipeline.unet)
    if registry.get_hook(HOOK) is not None:
        raise ValueError("the pipeline's UNet is guided already; put all guidances into one recipe.")
    registry.register_hook(_Guided(pipeline, recipe, models, conditionings, masks), HOOK)
    try:
        yield
    finally:
        registry.remove_hook(HOOK)


def text(pipeline, prompt: str) -> dict:
    """A prompt as a conditioning for ``guided``, by the text encoders of a Stable Diffusion 1, 2 or XL pipeline."""
    features, _, *pooled = pipeline.encode_prompt(prompt, device=pipeline.device, num_images_per_prompt=1,
                                                  do_classifier_free_guidance=False)
    return {"encoder_hidden_states": features} | ({"added_cond_kwargs": {"text_embeds": pooled[0]}} if pooled else {})


class NoiseLevels:
    """The noise levels of a scheduler's training steps, also between them, as k-diffusion defines them."""

    def __init__(self, scheduler):
        products = getattr(scheduler, "alphas_cumprod", None)
        if products is None:
            raise ValueError(f"{type(scheduler).__name__} has no noise levels of the diffusion kind; GCFG works with "
                             "the schedulers of Stable Diffusion (DDIM, DPM++, Euler, UniPC, ...).")
        tiny = torch.finfo(torch.float64).tiny
        products = products.double().cpu().clamp(min=tiny)
        self._logs = (0.5 * ((1.0 - products).clamp(min=tiny) / products).log()).tolist()

    def __call__(self, timestep: float) -> float:
        """sigma at a training step, linear in log sigma between whole ones."""
        timestep = min(max(timestep, 0.0), len(self._logs) - 1.0)
        low = min(int(timestep), len(self._logs) - 2)
        return math.exp(self._logs[low] + (timestep - low) * (self._logs[low + 1] - self._logs[low]))

    def at_progress(self, progress: float) -> float:
        """sigma at a sampling progress, 0 (all noise) to 1 (done): equal parts of the training steps."""
        return 0.0 if progress >= 1.0 else self((1.0 - progress) * (len(self._logs) - 1))


class _Guided(ModelHook):
    """Stands in for the UNet's forward pass for one recipe."""

    def __init__(self, pipeline, recipe: Recipe, models: dict, conditionings: dict, masks: dict):
        super().__init__()
        self.pipeline, self.recipe, self.models, self.conditionings = pipeline, recipe, models, conditionings
        self.masks = {i: masks[g.mask] for i, g in enumerate(recipe.guidances) if g.mask is not None}
        self.momentum, self.timesteps = Momentum(), None

    def new_forward(self, unet, sample: Tensor, timestep, encoder_hidden_states: Tensor, return_dict: bool = True,
                    **inputs):
        """The UNet's output for the recipe's denoised prediction at ``sample`` (B, C, H, W)."""
        _refuse_second_guidance(self.pipeline)
        scheduler = self.pipeline.scheduler
        if scheduler.timesteps is not self.timesteps:  # every run sets its own: no state survives a run
            self.momentum, self.timesteps = Momentum(), scheduler.timesteps
        levels = NoiseLevels(scheduler)
        sigma = levels(float(torch.as_tensor(timestep).flatten()[0]))
        form = Form(getattr(scheduler.config, "prediction_type", "epsilon"), sigma)
        step = plan(self.recipe, sigma, Progress(levels.at_progress, levels.at_progress(0.0)))
        inputs["encoder_hidden_states"] = encoder_hidden_states
        found = self._predict(step.all_predictions, sample, timestep, inputs)
        noisy = sample[:, :self._channels(unet, sample)].float()
        if in_zero_init(self.recipe, sigma, [*(levels(float(t)) for t in scheduler.timesteps), 0.0]):
            denoised = form.noisy(noisy)
        else:
            predictions = {p: form.denoised(value.float(), noisy) for p, value in found.items()}
            masks = {i: mask.to(noisy) for i, mask in self.masks.items()}
            denoised = combine(step, predictions, form.noisy(noisy), sigma, masks=masks, momentum=self.momentum)
        output = form.output(denoised, noisy).to(sample.dtype)
        return Transformer2DModelOutput(sample=output) if return_dict else (output,)

    @staticmethod
    def _channels(unet, sample: Tensor) -> int:
        """How many of the sample's channels are the latent; an inpainting UNet reads further ones."""
        return getattr(getattr(unet, "config", None), "out_channels", sample.shape[1])

    def _predict(self, wanted, sample: Tensor, timestep, inputs: dict) -> dict[Prediction, Tensor]:
        """Outputs (B, C, H, W) of the models, one batched pass for all texts of equal length on a model."""
        passes = defaultdict(dict)
        for p in wanted:
            own = self._inputs_of(p, inputs, len(sample))
            shape = own["encoder_hidden_states"].shape[1], frozenset(k for k, v in own.items() if v is not None)
            passes[p.model, shape][p] = own
        found = {}
        for (name, _), group in passes.items():
            count, rows = len(group), torch.as_tensor(timestep)
            model = self.fn_ref.original_forward if name == BASE else self.models[name]
            out = model(sample.repeat(count, 1, 1, 1), rows if rows.ndim == 0 else rows.repeat(count),
                        return_dict=False, **_joined(list(group.values())))[0]
            found.update(zip(group, out.chunk(count), strict=True))
        return found

    def _inputs_of(self, p: Prediction, inputs: dict, batch: int) -> dict:
        """What the UNet reads for one prediction: the pipeline's inputs, those of the conditioning in their place."""
        own = dict(inputs)
        if (p.model, p.conditioning) != (BASE, POSITIVE):
            own = {key: value for key, value in own.items() if key not in RESIDUALS}
        for key, value in self.conditionings.get(p.conditioning, {}).items():
            own[key] = {**(own.get(key) or {}), **value} if isinstance(value, Mapping) else value
        return {key: _for_batch(value, batch) for key, value in own.items()}


class Form:
    """What a network's output means at a noise level, as the scheduler's ``prediction_type`` says.

    The network sees ``x = a x0 + s noise`` with a^2 + s^2 = 1 and s / a = sigma, and gives noise (epsilon),
    a noise - s x0 (v_prediction, arXiv 2202.00512) or x0 (sample).
    """

    def __init__(self, kind: str, sigma: float):
        if kind not in ("epsilon", "v_prediction", "sample"):
            raise ValueError(f"unknown prediction_type '{kind}' of the scheduler.")
        self.kind, self.a, self.s = kind, 1.0 / math.hypot(1.0, sigma), sigma / math.hypot(1.0, sigma)

    def denoised(self, output: Tensor, x: Tensor) -> Tensor:
        """D of the network's output; all tensors here are (B, C, H, W)."""
        if self.kind == "sample":
            return output
        return (x - self.s * output) / self.a if self.kind == "epsilon" else self.a * x - self.s * output

    def output(self, denoised: Tensor, x: Tensor) -> Tensor:
        """The inverse of ``denoised``."""
        if self.kind == "sample":
            return denoised
        return (x - self.a * denoised) / self.s if self.kind == "epsilon" else (self.a * x - denoised) / self.s

    def noisy(self, x: Tensor) -> Tensor:
        """x0 + sigma noise, the form of the method."""
        return x / self.a


def _check(unet, recipe: Recipe, models: dict, conditionings: dict, masks: dict) -> None:
    recipe.check_balance()
    used = {recipe.baseline, *(p for g in recipe.guidances for p in g.uses)}
    for given, named, what in ((models, {p.model for p in used} - {BASE}, "model"),
                               (conditionings, {p.conditioning for p in used} - {POSITIVE}, "conditioning"),
                               (masks, {g.mask for g in recipe.guidances} - {None}, "mask")):
        if missing := sorted(named - given.keys()):
            raise ValueError(f"the recipe names the {what} '{missing[0]}', which is not given; given are: "
                             f"{', '.join(given) or 'none'}.")
    for name, model in models.items():
        own, other = (getattr(getattr(m, "config", None), "out_channels", None) for m in (unet, model))
        if None not in (own, other) and own != other:
            raise ValueError(f"'{name}' and the pipeline's UNet work in different latent spaces ({other} and {own} "
                             "channels); choose two models of one family.")


def _refuse_second_guidance(pipeline) -> None:
    guider = getattr(pipeline, "guider", None)
    if getattr(pipeline, "do_classifier_free_guidance", False) or (guider is not None and guider.num_conditions > 1):
        raise ValueError("the pipeline guides by itself as well: call it with guidance_scale=1.0 (a modular pipeline: "
                         "disable its guider); the control guidance is part of the recipe.")


def _for_batch(value, batch: int):
    """One conditioning for every sample, where it is given once."""
    if isinstance(value, Mapping):
        return {key: _for_batch(entry, batch) for key, entry in value.items()}
    if isinstance(value, Tensor) and value.ndim > 0 and len(value) == 1:
        return value.expand(batch, *value.shape[1:])
    return value


def _joined(group: list):
    """The inputs of several predictions as those of one batch."""
    first = group[0]
    if isinstance(first, Mapping):
        return {key: _joined([entry[key] for entry in group]) for key in first}
    if isinstance(first, list | tuple):
        return type(first)(_joined(list(parts)) for parts in zip(*group, strict=True))
    return torch.cat(group) if isinstance(first, Tensor) and first.ndim > 0 else first
