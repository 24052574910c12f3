"""Hooks on the conditionings of a recipe, registered with the host beside those of its own."""

from __future__ import annotations

from collections.abc import Iterable

import comfy.hooks
from comfy.model_patcher import ModelPatcher
from comfy.sampler_helpers import get_hooks_from_cond


def collect_hooks(conds: Iterable[list[dict]]) -> comfy.hooks.HookGroup:
    """All hooks on some conditionings."""
    group = comfy.hooks.HookGroup()
    for part in conds:
        get_hooks_from_cond(part, group)
    return group


def register_hooks(owner: ModelPatcher, options: dict, added: comfy.hooks.HookGroup,
                   together: comfy.hooks.HookGroup) -> None:
    """Register hooks with a MODEL beside those that the host has registered already.

    Args:
        added: hooks of ours; options hooks that the host has registered before are left alone.
        together: all hooks, ours and the host's: a MODEL forgets its weight hooks whenever some are registered.
    """
    registered = options.get("registered_hooks") or comfy.hooks.HookGroup()
    target = comfy.hooks.create_target_dict(comfy.hooks.EnumWeightTarget.Model)
    for kind in (comfy.hooks.EnumHookType.TransformerOptions, comfy.hooks.EnumHookType.AdditionalModels):
        for hook in added.get_type(kind):
            if not registered.contains(hook):
                hook.add_hook_patches(owner, options, target, registered)
    owner.register_all_hook_patches(together, target, options, registered)
    if len(registered) > 0:
        options["registered_hooks"] = registered
