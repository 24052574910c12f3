"""A second copy of the weights, for clones of a MODEL that cannot run on its rows: made once, kept while it serves."""

from __future__ import annotations

import copy

import comfy.model_management
from comfy.model_patcher import ModelPatcher

from .. import KEY
from ..models import describe, is_dynamic, replaces_methods, same_options, same_settings

KEPT = f"{KEY}_copy"
"""Under this key a MODEL carries its copy of the last run, with the module that it is a copy of."""


def with_own_weights(patcher: ModelPatcher) -> tuple[ModelPatcher, bool]:
    """A MODEL that computes the same as this one, over a module that no other MODEL uses; whether it is a new one.

    Clones of one checkpoint share one module: loaded side by side, both would run with the patches of one of them. The
    copy lives as long as the MODEL does, which a host's cache keeps while the inputs of its node stay the same. The
    host's memory management offloads it like any other.

    Raises:
        ValueError: the MODEL reaches into the shared module by itself: with injections, as bypass LoRA loaders and
            motion modules do, or with functions that belong to its layers.
    """
    if patcher.injections:
        raise ValueError(f"{describe(patcher)} is used twice, and one of them carries injections (a bypass LoRA, a "
                         "motion module) that would act on both; load the LoRA with the ordinary loader, apply "
                         "AnimateDiff before the LoRA that makes the second MODEL, or load the checkpoint twice.")
    if replaces_methods(patcher):
        raise ValueError(f"{describe(patcher)} is used twice, and one of them carries functions in place of its "
                         "layers' own (as WanVideoNAG), which would run the other's weights; apply that node to both, "
                         "or load the checkpoint twice.")
    module, own = patcher.attachments.get(KEPT, (None, None))
    if (own is not None and module is patcher.model and own.patches_uuid == patcher.patches_uuid
            and same_settings(own, patcher) and same_options(own, patcher)):
        return own, False
    own = _copied(patcher)
    own.parent = None  # whose module is another one; and nothing holds the copy but what it belongs to
    patcher.set_attachments(KEPT, (patcher.model, own))
    return own, True


def _copied(patcher: ModelPatcher) -> ModelPatcher:
    if is_dynamic(patcher):
        return patcher.clone(force_deepcopy=True)
    for loaded in [m for m in comfy.model_management.current_loaded_models if m.model is not None]:
        if loaded.model.is_clone(patcher):
            loaded.model_unload()
            comfy.model_management.current_loaded_models.remove(loaded)
    patcher.unpatch_model(patcher.offload_device)
    config = patcher.model.model_config
    own = patcher.clone()
    own.model = copy.deepcopy(patcher.model, {id(config): config})
    for name in ("backup", "object_patches_backup", "hook_backup", "backup_buffers"):
        if hasattr(own, name):
            setattr(own, name, {})
    if hasattr(own, "pinned"):
        own.pinned = set()
    return own
