"""Drawn cases for the twin law: stock patches x conditionings x kinds of model x families, as plain data.

Import it only where the host is on ``sys.path``.
"""

from dataclasses import dataclass
from functools import cached_property

import comfy.context_windows as context_windows
import comfy.hooks
import comfy.sd
import nodes
import torch
from comfy_extras import (
    nodes_apg,
    nodes_freelunch,
    nodes_model_advanced,
    nodes_pag,
    nodes_sag,
    nodes_tcfg,
    nodes_tomesd,
)
from hypothesis import strategies as st

from gcfg_pack.gcfg.host.concepts.concept import apply_adapter
from gcfg_pack.gcfg.host.sampling.chain import Link
from gcfg_pack.gcfg.nulltext.formats.adapter import Adapter

from .models import tiny
from .models.weights import generator
from .node import call
from .sampling import stock

STEPS = 2
WIDTHS = {"sd15": (768, 0), "sdxl": (2048, 1280), "sd3": (4096, 2048)}


def optional(module, name, *arguments):
    """A node that only newer hosts have; without it the MODEL stays as it is."""
    try:
        extra = __import__(f"comfy_extras.{module}", fromlist=[name])
    except ImportError:
        return lambda model: model
    return lambda model: call(getattr(extra, name), model, *arguments)[0]


def windows(model):
    """Context windows over the height of the picture."""
    clone = model.clone()
    clone.model_options["context_handler"] = context_windows.IndexListContextHandler(
        context_schedule=context_windows.get_matching_context_schedule("standard_static"),
        fuse_method=context_windows.get_matching_fuse_method("pyramid"), context_length=8, context_overlap=2, dim=2)
    return clone


def tomesd(model):
    """Token merging, the same in every pass.

    The node draws from the global generator in every layer, so that stock itself gives another picture when one more
    number is drawn on the way. Here each layer starts from the same number.
    """
    seeded = model.clone()
    seeded.set_model_attn1_patch(lambda q, k, v, extra: (torch.manual_seed(0), (q, k, v))[1])
    return call(nodes_tomesd.TomePatchModel, seeded, 0.3)[0]


UNET_ONLY = {
    "sag": lambda m: call(nodes_sag.SelfAttentionGuidance, m, 0.5, 2.0)[0],
    "pag": lambda m: call(nodes_pag.PerturbedAttentionGuidance, m, 3.0)[0],
    "freeu": lambda m: call(nodes_freelunch.FreeU_V2, m, 1.3, 1.4, 0.9, 0.2)[0],
    "tomesd": tomesd,
}
EVERYWHERE = {
    "nag": optional("nodes_nag", "NAGuidance", 5.0, 0.5, 1.5),
    "tcfg": lambda m: call(nodes_tcfg.TCFG, m)[0],
    "apg": lambda m: call(nodes_apg.APG, m, 0.5, 5.0, 0.2)[0],
    "rescale": lambda m: call(nodes_model_advanced.RescaleCFG, m, 0.7)[0],
    "mahiro": optional("nodes_mahiro", "Mahiro"),
    "cfg zero star": optional("nodes_cfg", "CFGZeroStar"),
    "fresca": optional("nodes_fresca", "FreSca", 1.0, 1.25, 2),
    "easycache": optional("nodes_easycache", "EasyCacheNode", 0.5, 0.1, 0.95, False),
    "lazycache": optional("nodes_easycache", "LazyCacheNode", 0.5, 0.1, 0.95, False),
    "context windows": windows,
}

_MODELS: dict[tuple, object] = {}


def model(family, seed, kind="plain"):
    """A model by seed, built once: runs leave models as they were."""
    key = family, seed, kind
    if key not in _MODELS:
        _MODELS[key] = getattr(tiny, family)(seed)
    return _MODELS[key]


def with_lora(patcher, seed):
    return comfy.sd.load_lora_for_models(patcher, None, tiny.lora(patcher, seed), 1.0, 0.0)[0]


def with_null_text(patcher):
    """A concept adapter whose cross-attentions are constants."""
    biases = {name: bias for name, bias in patcher.model.diffusion_model.state_dict().items()
              if name.endswith("attn2.to_out.0.bias")}
    features = {name.removesuffix(".attn2.to_out.0.bias"): torch.randn((1, 1, len(bias)), generator=generator(5, name))
                for name, bias in biases.items()}
    return apply_adapter(patcher, Adapter({}, {}, features)) if features else with_lora(patcher, 22)


CONCEPTS = {"clone": lambda patcher: with_lora(patcher, 20), "other clone": lambda patcher: with_lora(patcher, 21),
            "null text": with_null_text}


def twin_of(base, case):
    """A model in a module of its own with the base's weights and its patches, as after loading the file twice."""
    twin = model(case.family, 1, "twin")
    twin = (with_lora(twin, 5) if case.lora else twin).clone()
    twin.model_options, twin.wrappers = base.model_options, base.wrappers
    return twin


# --- conditionings ---------------------------------------------------------------------------------------------------


def image():
    return torch.rand((1, 128, 128, 3), generator=torch.manual_seed(1))


def mask(side):
    whole = torch.zeros((1, 128, 128))
    whole[..., :64] = 1.0
    return whole if side == "left" else 1.0 - whole


def hook(family, conditioning, scheduled):
    group = comfy.hooks.create_hook_lora(tiny.lora(model(family, 1), 9), 0.5, 0.0)
    if scheduled:
        keyframes = comfy.hooks.HookKeyframeGroup()
        for strength, start in ((0.2, 0.0), (1.0, 0.3)):
            keyframes.add(comfy.hooks.HookKeyframe(strength, start_percent=start))
        group.set_keyframes_on_hooks(keyframes)
    return [[text, {**options, "hooks": group}] for text, options in conditioning]


def text(family, seed, tokens=8):
    width, pooled = WIDTHS[family]
    return tiny.conditioning(seed, tokens, width=width, pooled=pooled)


CHANGES = {
    "area": lambda family, c: nodes.ConditioningSetArea().append(c, 64, 128, 0, 0, 1.0)[0],
    "mask": lambda family, c: nodes.ConditioningSetMask().append(c, mask("left"), "default", 0.7)[0],
    "mask bounds": lambda family, c: nodes.ConditioningSetMask().append(c, mask("right"), "mask bounds", 1.0)[0],
    "hook": lambda family, c: hook(family, c, False),
    "scheduled hook": lambda family, c: hook(family, c, True),
    "concat": lambda family, c: nodes.ConditioningConcat().concat(c, text(family, 8, 77))[0],
    "range": lambda family, c: nodes.ConditioningSetTimestepRange().set_range(c, 0.0, 0.6)[0],
}
AREAS = {"area", "mask", "mask bounds"}
OF_SD15 = {
    "old controlnet": lambda family, c: nodes.ControlNetApply().apply_controlnet(c, tiny.controlnet(), image(), 0.8)[0],
    "ranged controlnet": lambda family, c: nodes.ControlNetApplyAdvanced().apply_controlnet(
        c, c, tiny.controlnet(), image(), 0.8, 0.0, 0.7)[0],
}


def changes(family):
    return CHANGES | (OF_SD15 if family == "sd15" else {})


def patches(family):
    return EVERYWHERE | (UNET_ONLY if family != "sd3" else {})


@dataclass(frozen=True)
class Case:
    """What is drawn, in names and numbers; the objects are made from it."""

    family: str
    patches: tuple[str, ...]
    lora: bool
    batch: int
    prompts: tuple[tuple[str, ...], ...]  # the changed parts of positive, negative and style
    links: tuple[tuple, ...]  # (kind of model, conditioning, scale, reference, model and conditioning of it)
    order: tuple[int, ...]
    twin: str

    def base(self, seed=1, kind="plain"):
        base = model(self.family, seed, kind)
        base = with_lora(base, 5) if self.lora else base
        for name in self.patches:
            base = patches(self.family)[name](base)
        return base

    def prompt(self, which):
        if which is None:
            return None
        parts = [changes(self.family)[name](self.family, text(self.family, which + 10 * i + 1))
                 for i, name in enumerate(self.prompts[which])]
        return [*text(self.family, which + 1), *[c for part in parts for c in part]]

    def chain(self, base, scale=1.0):
        """The drawn links; conditionings of one name are one object."""
        prompts = {which: self.prompt(which) for which in (None, 0, 2)}
        models = {kind: concept(base) for kind, concept in CONCEPTS.items()}
        models |= {"prompt": None, "model": model(self.family, 2)}
        return [Link(model=models[kind], conditioning=prompts[c], scale=s * scale, reference=reference,
                     reference_model=models[kind] if own else None, reference_conditioning=prompts[rc])
                if reference == "custom" else
                Link(model=models[kind], conditioning=prompts[c], scale=s * scale, reference=reference)
                for kind, c, s, reference, own, rc in self.links]

    def sample(self, model, steps=STEPS):
        latent = tiny.latent(self.batch, 16 if self.family == "sd3" else 4, 16, 16, seed=7)
        return stock(model, self.positive, self.negative, latent, steps=steps, scheduler="normal")

    @cached_property
    def positive(self):
        return self.prompt(0)

    @cached_property
    def negative(self):
        return self.prompt(1)


@st.composite
def cases(draw):
    family = draw(st.sampled_from(["sd15"] * 6 + ["sdxl", "sd3"]))
    link = st.tuples(st.sampled_from(["prompt", "model", *CONCEPTS]), st.sampled_from([None, 0, 2]),
                     st.sampled_from([1.5, -0.7]), st.sampled_from(["unconditional", "custom"]), st.booleans(),
                     st.sampled_from([None, 2]))
    links = draw(st.lists(link, min_size=1, max_size=3))
    patched = tuple(draw(st.lists(st.sampled_from(sorted(patches(family))), max_size=2, unique=True)))
    windowed = "context windows" in patched  # in which the host finds neither areas nor the samples of a batch
    names = st.lists(st.sampled_from(sorted(changes(family).keys() - (AREAS if windowed else set()))), max_size=2)
    names, most = names.map(tuple), 1 if windowed else 2
    return Case(family, patched, draw(st.booleans()), draw(st.integers(1, most)),
                (draw(names), draw(names), draw(names)), tuple(links),
                tuple(draw(st.permutations(range(len(links))))), draw(st.sampled_from(["clone", "apart"])))
