"""Which MODELs may be mixed in one sampling run, and which of them share weights."""

from __future__ import annotations

import inspect
import logging
from types import MethodType

import torch
from comfy.model_patcher import ModelPatcher
from comfy.model_sampling import CONST
from comfy.patcher_extension import WrappersMP

from ..nulltext.attention import is_null_text
from ..nulltext.tokens import has_constant_tokens
from . import KEY

TEXT_WIDTHS = ("text_dim", "caption_channels", "crossattn_emb_channels")
"""What the configurations of transformers with a cross-attention call the width of text."""


def describe(patcher: ModelPatcher) -> str:
    """A MODEL in a few words, for error messages."""
    model = patcher.model
    latent = patcher.get_model_object("latent_format")
    family = "flow matching" if is_flow(patcher) else model.model_type.name.lower().replace("_", "-")
    return (f"{type(model.model_config).__name__} ({family}, {latent.latent_channels}-channel "
            f"{type(latent).__name__} latents)")


def is_flow(patcher: ModelPatcher) -> bool:
    """True for flow matching, where x = (1 - sigma) x0 + sigma noise; False where x = x0 + sigma noise."""
    return isinstance(patcher.get_model_object("model_sampling"), CONST)


def is_patched(patcher: ModelPatcher) -> bool:
    """True if the MODEL already carries guidances of this pack."""
    return any(KEY in by_key for by_key in patcher.wrappers.values())


def check_mixable(base: ModelPatcher, other: ModelPatcher, label: str) -> None:
    """Refuse a second MODEL whose predictions cannot be added to those of the base.

    Raises:
        ValueError: other latents, another prediction family, or a MODEL that itself carries guidances.
    """
    if is_patched(other):
        raise ValueError(f"{label}: its model already carries GCFG guidances; connect the MODEL from before "
                         "'Apply GCFG to Model' and put all guidances into one chain.")
    if latent_space(base) != latent_space(other):
        raise ValueError(f"{label}: {describe(other)} and the base {describe(base)} work in different latent spaces; "
                         "choose a model of the same architecture family.")
    if is_flow(base) != is_flow(other):
        raise ValueError(f"{label}: {describe(other)} and the base {describe(base)} add noise in different ways "
                         "(flow matching against variance exploding); choose two models of one kind.")
    ours, theirs = (p.get_model_object("model_sampling") for p in (base, other))
    if getattr(ours, "sigma_data", 1.0) != getattr(theirs, "sigma_data", 1.0):
        raise ValueError(f"{label}: {describe(other)} and the base {describe(base)} expect differently scaled latents "
                         f"(sigma_data {theirs.sigma_data} and {ours.sigma_data}); choose two models of one kind.")
    if float(ours.sigma_max) > 1.5 * float(theirs.sigma_max):
        logging.warning("GCFG: %s: noise levels of the run reach %.4g, but %s was trained up to %.4g.",
                        label, float(ours.sigma_max), describe(other), float(theirs.sigma_max))


def check_acts(base: ModelPatcher, other: ModelPatcher, label: str) -> None:
    """Refuse a second MODEL with functions of a sampler's whole guidance, or of its mask, that the base has not.

    On the one prediction that is asked of it they would do nothing.

    Raises:
        ValueError: it carries such functions.
    """
    def only_here(functions_of) -> list[str]:
        known = set(map(id, functions_of(base)))
        return [getattr(fn, "__qualname__", type(fn).__name__).split(".")[0]
                for fn in functions_of(other) if id(fn) not in known]

    if nodes := dict.fromkeys(only_here(_of_whole_guidance)):
        raise ValueError(f"{label}: its model carries {', '.join(nodes)}, which changes the guidance of a whole "
                         "sampler and would do nothing to this one prediction; connect that node to the sampler's "
                         "model instead.")
    if nodes := only_here(lambda patcher: _listed(patcher.model_options, "denoise_mask_function")):
        raise ValueError(f"{label}: its model carries {nodes[0]}, which changes a sampler's mask from step to step, "
                         "and one prediction has none of its own; connect that node to the sampler's model instead, "
                         "and what this guidance shall act on to its own mask.")


def _of_whole_guidance(patcher: ModelPatcher) -> list:
    """The functions on a MODEL that are called with a sampler's combined or paired predictions."""
    names = ("sampler_cfg_function", "sampler_pre_cfg_function", "sampler_post_cfg_function",
             "sampler_calc_cond_batch_function")
    wrappers = _foreign(patcher.wrappers).get(WrappersMP.PREDICT_NOISE, {})
    return [fn for name in names for fn in _listed(patcher.model_options, name)] + [
        fn for by_key in wrappers.values() for fn in by_key]


def _listed(options: dict, name: str) -> list:
    """What an option holds, one value or a list of them."""
    value = options.get(name, [])
    return value if isinstance(value, list) else [value]


def check_conditioning(patcher: ModelPatcher, conditioning: list, label: str) -> None:
    """Refuse a conditioning that is empty or whose text encoder does not belong to the model (ValueError)."""
    if not conditioning:
        raise ValueError(f"{label}: its conditioning is an empty list, under which nothing can be predicted; connect "
                         "a conditioning, for instance that of an empty prompt.")
    width = patcher.model.model_config.unet_config.get("context_dim")
    for cross_attn, _ in conditioning:
        if isinstance(width, int) and cross_attn is not None and cross_attn.shape[-1] != width:
            raise ValueError(f"{label}: its conditioning is {cross_attn.shape[-1]} wide, but {describe(patcher)} reads "
                             f"{width}; encode the prompt with the text encoder that belongs to this model.")


def no_text(patcher: ModelPatcher, label: str) -> list:
    """The conditioning that stands for no text, for a MODEL that predicts without any.

    That is a null-text model, or one with a pass over the picture alone (Ideogram 4).

    Raises:
        ValueError: the MODEL reads text.
    """
    network, config = patcher.model.diffusion_model, patcher.model.model_config.unet_config
    if hasattr(network, "_run_image_only") or is_null_text(network) and not config.get("adm_in_channels"):
        return [[None, {}]]
    width = next((config[name] for name in TEXT_WIDTHS if name in config), None)
    if has_constant_tokens(network) and width is not None:  # it embeds what it is given, and looks at none of it
        masked = "attention_mask" in inspect.signature(network.forward).parameters
        return [[torch.zeros(1, 1, width), {"attention_mask": torch.ones(1, 1, dtype=torch.long)} if masked else {}]]
    raise ValueError(f"{label}: {describe(patcher)} predicts nothing without text; connect a conditioning, for "
                     "instance that of an empty prompt, as negative.")


def check_shared_text(base: ModelPatcher, other: ModelPatcher, label: str) -> None:
    """Refuse a second MODEL that would read the sampler's own conditioning and cannot (ValueError).

    That conditioning fits the base. A null-text model reads none.
    """
    width, read = (p.model.model_config.unet_config.get("context_dim") for p in (base, other))
    fits = width == read or not isinstance(width, int) or not isinstance(read, int)
    if not fits and not is_null_text(other.model.diffusion_model):
        raise ValueError(f"{label}: its conditioning is {width} wide, but {describe(other)} reads {read}. It is the "
                         "sampler's own, of the base's text encoder: choose a model of the base's family, or connect a "
                         "conditioning from the text encoder that belongs to this model.")


def latent_space(patcher: ModelPatcher) -> tuple:
    """What must agree for two models to share latents."""
    latent = patcher.get_model_object("latent_format")
    return type(latent), latent.latent_channels, latent.latent_dimensions, latent.scale_factor


def same_weights(a: ModelPatcher, b: ModelPatcher) -> bool:
    """True if both MODELs compute with the same weights and modules (clones of one model with equal patches)."""
    return same_modules(a, b) and a.patches_uuid == b.patches_uuid


def same_modules(a: ModelPatcher, b: ModelPatcher) -> bool:
    """True if both MODELs are clones of one model and differ, if at all, in the patches of their weights."""
    return a.model is b.model and same_settings(a, b)


def same_settings(a: ModelPatcher, b: ModelPatcher) -> bool:
    """True if nothing but module, weights and options of two MODELs may differ."""
    return (_alike(a.object_patches, b.object_patches) and _alike(a.injections, b.injections)
            and _alike(a.hook_patches, b.hook_patches)
            and _alike(getattr(a, "weight_wrapper_patches", {}), getattr(b, "weight_wrapper_patches", {})))


def same_options(a: ModelPatcher, b: ModelPatcher) -> bool:
    """True if both MODELs carry the same attention patches, wrappers and CFG functions."""
    return (_alike(a.model_options, b.model_options) and _alike(_foreign(a.wrappers), _foreign(b.wrappers))
            and _alike(_foreign(a.callbacks), _foreign(b.callbacks)))


def _foreign(registered: dict[str, dict]) -> dict[str, dict]:
    """Wrappers or callbacks of others, {type: {key: list}}, without empty entries."""
    kept = {kind: {k: v for k, v in by_key.items() if k != KEY and v} for kind, by_key in registered.items()}
    return {kind: by_key for kind, by_key in kept.items() if by_key}


def _alike(a: object, b: object) -> bool:
    """Containers by content, plain values by value, everything else by identity."""
    if a is b:
        return True
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_alike(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(_alike, a, b))
    return isinstance(a, str | int | float) and type(a) is type(b) and a == b


def is_dynamic(patcher: ModelPatcher) -> bool:
    """True for the MODELs of newer hosts whose weights come and go during a forward pass."""
    return getattr(patcher, "is_dynamic", bool)()


def replaces_methods(patcher: ModelPatcher) -> bool:
    """True if a MODEL carries functions in place of methods of its layers, which may look at a whole batch."""
    patches = patcher.object_patches.items()
    return any(isinstance(patch, MethodType) or name.endswith(".forward") for name, patch in patches)


def for_hooks(patcher: ModelPatcher | None) -> ModelPatcher | None:
    """The MODEL in a form whose weights hooks can exchange: dynamic MODELs cannot have that done to them."""
    return patcher.get_non_dynamic_delegate() if patcher is not None and is_dynamic(patcher) else patcher
