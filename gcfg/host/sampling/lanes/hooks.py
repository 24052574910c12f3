"""Hooks on the conditionings of a recipe, registered with the host beside those of its own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import comfy.hooks
from comfy.model_patcher import ModelPatcher
from comfy.sampler_helpers import get_hooks_from_cond
from comfy.samplers import filter_registered_hooks_on_conds, preprocess_conds_hooks


def collect_hooks(conds: Iterable[list[dict]]) -> comfy.hooks.HookGroup:
    """All hooks on some conditionings."""
    group = comfy.hooks.HookGroup()
    for part in conds:
        get_hooks_from_cond(part, group)
    return group


def register_together(owner: ModelPatcher, lanes: Sequence[tuple[dict, dict]], host: Sequence[list[dict]]) -> None:
    """Register the hooks of everything that runs on one module with its MODEL, in place.

    Args:
        lanes: conditionings by name and model options of each lane on this module.
        host: conditionings whose hooks the host has registered already.
    """
    for conds, _ in lanes:
        preprocess_conds_hooks(conds)
    ours = [part for conds, _ in lanes for part in conds.values()]
    added = collect_hooks(ours)
    for conds, options in lanes:
        if added.hooks:
            register_hooks(owner, options, added, collect_hooks([*host, *ours]))
        filter_registered_hooks_on_conds(conds, options)
    if host and len({c.get("hooks") for part in (*host, *ours) for c in part}) > 1:
        owner.hook_mode = comfy.hooks.EnumHookMode.MaxSpeed  # the host chose by its own conditionings alone


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
