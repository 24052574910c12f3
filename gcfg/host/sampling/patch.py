"""A recipe as a patch on a MODEL: any sampler node that takes the MODEL then runs it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from comfy.sampler_helpers import convert_cond
from comfy.samplers import CFGGuider

from ...guidance import BASE, Performance, Prediction
from .. import KEY
from ..models import for_hooks, is_patched
from .chain import POSITIVE, Link, Spec, compile_chain
from .lanes.hooks import collect_hooks
from .run import Run
from .step import STEP, Step

SAMPLER_POSITIVE = Prediction(BASE, POSITIVE)


def apply(model: ModelPatcher, links: Sequence[Link], *, baseline_model: ModelPatcher | None = None,
          previous: Prediction | None = SAMPLER_POSITIVE, performance: Performance | None = None) -> ModelPatcher:
    """A clone of the MODEL whose sampler adds a chain of guidances to its own (arXiv 2312.08195).

    The sampler's positive, negative and cfg stay the first guidance and the baseline.

    Args:
        baseline_model: predicts the baseline (the unconditional prediction) in place of the MODEL.
        previous: what "previous guidance" means for the first link.
        performance: which forward passes to save; none if None.

    Raises:
        ValueError: the MODEL carries guidances already, or a model or conditioning of the chain does not fit it.
    """
    if is_patched(model):
        raise ValueError("This model already carries GCFG guidances; connect the MODEL from before 'Apply GCFG to "
                         "Model' and put all guidances into one chain.")
    performance = performance or Performance()
    links = [within(link, model, performance) for link in links]
    conditionings = [c for link in links for c in (link.conditioning, link.reference_conditioning) if c is not None]
    if collect_hooks(map(convert_cond, conditionings)).hooks:
        model, baseline_model = for_hooks(model), for_hooks(baseline_model)
        links = [replaced(link, for_hooks) for link in links]
    recipe, sources = compile_chain(model, links, baseline_model=baseline_model, previous=previous)
    spec = Spec(recipe, sources.models, sources.conditionings, sources.masks, performance)
    patched = model.clone()
    patched.set_attachments(KEY, spec)  # for whoever asks for its trace; clones share it
    for kind, wrapper in ((WrappersMP.OUTER_SAMPLE, partial(_outer_sample, spec)),
                          (WrappersMP.PREPARE_SAMPLING, _prepare_sampling),
                          (WrappersMP.SAMPLER_SAMPLE, _sampler_sample),
                          (WrappersMP.PREDICT_NOISE, _predict_noise),
                          (WrappersMP.CALC_COND_BATCH, _calc_cond_batch)):
        patched.add_wrapper_with_key(kind, KEY, wrapper)
    return patched


def replaced(link: Link, change: Callable[[ModelPatcher | None], ModelPatcher | None]) -> Link:
    """A link whose MODELs are changed."""
    other = link.perpendicular_to
    return replace(link, model=change(link.model), reference_model=change(link.reference_model),
                   perpendicular_to=other and replaced(other, change))


def within(link: Link, model: ModelPatcher, performance: Performance) -> Link:
    """A link, confined to the concept window if another model than the base predicts it."""
    if link.model in (None, model):
        return link
    start, end = max(link.start, performance.concept_start), min(link.end, performance.concept_end)
    return replace(link, start=start, end=end) if start <= end else replace(link, scale=0.0)


# A guider of two MODELs merges the wrappers of both: each of these may be met twice, and the second passes on.


def _outer_sample(spec: Spec, executor, *args, **kwargs):
    guider = executor.class_obj
    if guider.model_patcher.get_attachment(KEY) is not spec:
        raise ValueError("A model beside the sampler's own carries GCFG guidances, which act on a whole sampler; "
                         "connect 'Apply GCFG to Model' to the sampler's model only.")
    if KEY in guider.model_options:
        return executor(*args, **kwargs)
    with Run(guider, spec) as run:
        return run.within_wrappers(executor)(*args, **kwargs)


def _prepare_sampling(executor, model, noise_shape, conds, *args, **kwargs):
    run: Run = kwargs["model_options"][KEY]
    if KEY in conds:
        return executor(model, noise_shape, conds, *args, **kwargs)
    shape = [noise_shape[0] * run.batch_factor, *noise_shape[1:]]
    inner_model, _, models = executor(model, shape, run.to_load(conds), *args, **kwargs)
    return inner_model, conds, models


def _sampler_sample(executor, guider, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None,
                    *args, **kwargs):
    run: Run = extra_args["model_options"][KEY]
    if not run.networks:
        run.start(sigmas, noise, latent_image, denoise_mask, extra_args.get("seed"))
    if type(guider).__call__ is not CFGGuider.__call__:
        guider = _Called(guider)
    return executor(guider, sigmas, extra_args, callback, noise, latent_image, denoise_mask, *args, **kwargs)


class _Called:
    """Stands for a guider with a way of its own of being called, which may run no wrapper around its predictions."""

    def __init__(self, guider: CFGGuider):
        self._guider = guider

    def __getattr__(self, name: str):
        return getattr(self._guider, name)

    def __call__(self, x, timestep, model_options, **kwargs):
        def predict(x, timestep, model_options, **kwargs):
            return self._guider(x, timestep, model_options=model_options, **kwargs)
        return _predict_noise(predict, x, timestep, model_options, **kwargs)


def _predict_noise(executor, x, timestep, model_options, *args, **kwargs):
    if STEP in model_options:
        return executor(x, timestep, model_options, *args, **kwargs)
    return Step(model_options[KEY], x, timestep).predict_noise(executor, model_options, *args, **kwargs)


def _calc_cond_batch(executor, model, conds, x, timestep, model_options):
    if STEP not in model_options:
        return executor(model, conds, x, timestep, model_options)
    return model_options[STEP].calc_cond_batch(executor, model, conds, x, timestep, model_options)
