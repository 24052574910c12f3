"""Shipped workflows about chains of guidances: how to write them, where they run, what they do."""

from .parts import (
    CONCEPT,
    OFFICIAL,
    Node,
    Workflow,
    checkpoint,
    custom_sampler,
    guidance,
    guider,
    images,
    noise_and_levels,
    prompt,
    prompts,
    sampler,
    save,
    settings,
    size,
    stack,
    unconditional,
    unet,
)

CHAINS = [
    Workflow(
        "Several Guidances",
        "**One model, several prompts, a scale for each.** Each Guidance adds scale x (prediction - unconditional).\n\n"
        "Load any checkpoint. The prompt has **control_scale**; the styles have scales of their own.\n\n"
        "A negative scale pushes away; Ctrl+B drops a node. Several GPUs: **MultiGPU CFG Split** behind the loader.",
        {
            "Model": {"base": checkpoint(), "size": size()},
            "Conditions": {
                **prompts("a photo of a bedroom"),
                "minimalist": prompt("minimalist style", "Style to add"),
                "clutter": prompt("cluttered, ornate", "Style to avoid"),
            },
            "First guidance": {"towards": guidance("Towards minimalist", 3.0, conditioning=("minimalist", 0))},
            "Second guidance": {"away": guidance("Away from clutter", -2.0, guidance=("towards", 0),
                                                 conditioning=("clutter", 0))},
            "Sampling": {"sampler": sampler(control_scale=7.5, guidance=("away", 0))},
            "Image": images("several guidances"),
        },
    ),
    Workflow(
        "Guidance Stack",
        "**Several guidances in one node**, each with a switch, a scale and a window of its own.\n\n"
        "Load any checkpoint. The prompt has **control_scale**; the stack adds one style and takes another away.\n\n"
        "**guidances** sets how many there are, up to eight; a row takes a model in place of a prompt, too.",
        {
            "Model": {"base": checkpoint(), "size": size()},
            "Conditions": {
                **prompts("a photo of a bedroom"),
                "minimalist": prompt("minimalist style", "Style to add"),
                "clutter": prompt("cluttered, ornate", "Style to avoid"),
            },
            "Guidances": {"stack": stack((("minimalist", 0), 3.0, 0.0, 1.0), (("clutter", 0), -2.0, 0.0, 0.7))},
            "Sampling": {"sampler": sampler(control_scale=7.5, guidance=("stack", 0))},
            "Image": images("guidance stack"),
        },
    ),
    Workflow(
        "Text to Guidances",
        "**A whole chain in a line of text**: AND adds, AND_NOT pushes away, with weights and windows.\n\n"
        "Load any checkpoint. The saved image carries the line in its metadata (**gcfg_recipe**).\n\n"
        "AND_PERP adds what a prompt has across the first one. **scale** is the strength of a prompt of weight 1.",
        {
            "Model": {"base": checkpoint(), "size": size(), "null": unconditional()},
            "Guidances": {
                "chain": Node("GCFGTextToGuidances", {
                    "clip": ("base", 1), "scale": 5.0,
                    "text": "a photo of a cat AND a wizard's hat :0.7 AND_NOT blurry :0.3 [0.2-0.8]"}),
                **settings(("chain", 0), scheduler="normal"),
            },
            "Sampling": {"sampler": custom_sampler()},
            "Recipe": {
                "decode": Node("VAEDecode", {"samples": ("sampler", 0), "vae": ("base", 2)}),
                "recipe": Node("GCFGGuidancesToText", {"guidance": ("chain", 0), "scale": 5.0,
                                                       "images": ("decode", 0)}),
                "show": Node("PreviewAny", {"source": ("recipe", 0)}, "The chain as text"),
            },
            "Image": {"save": save("text to guidances", ("recipe", 1))},
        },
    ),
    Workflow(
        "Guidance Preset",
        "**A published method in one node**, here Perp-Neg: a prompt to avoid that cannot weaken the prompt.\n\n"
        "Load any checkpoint. The help of Guidance Preset says what each method needs, and when to use it.\n\n"
        "Other presets: AutoGuidance, perturbed attention, domain and personalization guidance, composable diffusion.",
        {
            "Model": {"base": checkpoint(), "size": size()},
            "Conditions": {
                **prompts("a photo of an armchair in a garden"),
                "avoid": prompt("flowers", "Prompt to avoid"),
            },
            "Guidances": {
                "preset": Node("GCFGPreset", {"preset": "Perp-Neg", "positive": ("control", 0),
                                              "conditioning_2": ("avoid", 0), "scale": 5.0, "scale_2": 1.0,
                                              "weight": 0.0}),
                **settings(("preset", 0), scheduler="normal"),
            },
            "Sampling": {"sampler": custom_sampler()},
            "Image": images("preset"),
        },
    ),
    Workflow(
        "Stock KSampler on a Patched Model",
        "**GCFG in a workflow that you have.** Apply GCFG to Model adds the chain; the KSampler stays as it is.\n\n"
        "Load a base checkpoint, and a concept model made from it (**models/diffusion_models**).\n\n"
        "The KSampler's **cfg** is the control scale. Any sampler node that takes a MODEL works.",
        {
            "Models": {"base": checkpoint(), "concept": unet()},
            "Conditions": {**prompts(), "size": size()},
            "Guidance": {
                "guidance": guidance("Concept", 1.5, model=("concept", 0)),
                "patch": Node("GCFGPatchModel", {"model": ("base", 0), "guidance": ("guidance", 0)}),
            },
            "Sampling": {"sampler": Node("KSampler", {
                "model": ("patch", 0), "positive": ("control", 0), "negative": ("null", 0), "latent_image": ("size", 0),
                "seed": 2312, "cfg": 2.5, "denoise": 1.0, **OFFICIAL})},
            "Image": images("patched model"),
        },
    ),
    Workflow(
        "Custom Sampling with the GCFG Guider",
        "**Every part on its own.** A guider from a chain of guidances, for SamplerCustomAdvanced.\n\n"
        "Load a base checkpoint, and a concept model made from it (**models/diffusion_models**).\n\n"
        "The concept acts early and fades, the prompt acts throughout; shaping keeps its contrast in bounds.",
        {
            "Models": {"base": checkpoint(), "concept": unet(), "size": size()},
            "Conditions": {
                **prompts(),
                "schedule": Node("GCFGSchedule", {"kind": "cosine", "start_value": 1.0, "end_value": 0.4,
                                                  "exponent": 2.0, "points": "0: 1, 0.5: 1, 1: 0"}),
                "shaping": Node("GCFGShaping", {
                    "parallel": 0.5, "orthogonal": 1.0, "norm_limit": 0.0, "momentum": 0.0, "rescale": 0.0,
                    "zero_star": False, "zero_init_steps": 0, "ratio_damping": 0.0, "balance": 0.0}),
            },
            "Guidances": {
                "text": guidance("Control", 2.5, conditioning=("control", 0)),
                "domain": guidance("Concept", 1.5, guidance=("text", 0), model=("concept", 0),
                                   schedule=("schedule", 0), shaping=("shaping", 0)),
            },
            "Settings": {
                "guider": guider(("domain", 0)),
                **noise_and_levels(),
            },
            "Sampling": {"sampler": custom_sampler()},
            "Image": images("guider"),
        },
    ),
    Workflow(
        "Inspect Guidance",
        "**What each guidance does.** A plot of each guidance's size, the angles between them, and their cost.\n\n"
        "Load a base checkpoint, and a concept model made from it (**models/diffusion_models**).\n\n"
        "Cosine near -1: two guidances fight. A size near zero: end that guidance earlier. The CSV has the numbers.",
        {
            "Models": {"base": checkpoint(), "concept": unet(), "size": size()},
            "Conditions": {
                **prompts(),
                "clutter": prompt("cluttered background", "Style to avoid"),
            },
            "Guidances": {
                "text": guidance("Control", 2.5, conditioning=("control", 0)),
                "domain": guidance("Concept", 1.5, guidance=("text", 0), model=("concept", 0), end_percent=0.8),
            },
            "More guidances": {
                "away": guidance("Away from clutter", -1.0, guidance=("domain", 0), conditioning=("clutter", 0)),
                "guider": guider(("away", 0)),
            },
            "Settings": {
                **noise_and_levels(),
            },
            "Sampling": {"sampler": custom_sampler()},
            "Insight": {
                "inspect": Node("GCFGInspector", {"guider": ("guider", 0), "latent": ("sampler", 0)}),
                "numbers": Node("PreviewAny", {"source": ("inspect", 1)}, "CSV"),
            },
            "Image": images("inspected"),
        },
        below="Settings",
    ),
]

PAPER = [
    Workflow(
        "The Paper's Settings, Exactly",
        "**As the official code samples**: its noise levels, DPM++ 2M, 25 steps, scales 2.5 (arXiv 2312.08195).\n\n"
        "Load a base checkpoint, and a null-text concept model made from it (**models/concept_models**).\n\n"
        "The same as that code's pictures to 3e-6. For most concepts 1.5 is better than the paper's concept scale.",
        {
            "Models": {
                "base": checkpoint(),
                "concept": Node("GCFGLoadConceptModel", {"model": ("base", 0), "concept_name": CONCEPT,
                                                         "strength": 1.0}),
            },
            "Conditions": {**prompts("wearing glasses"), "size": size()},
            "Guidance": {
                "guidance": guidance("Concept", 2.5, model=("concept", 0)),
                "patch": Node("GCFGPatchModel", {"model": ("base", 0), "guidance": ("guidance", 0)}),
            },
            "Settings": {
                "method": Node("KSamplerSelect", {"sampler_name": "dpmpp_2m"}),
                "sigmas": Node("GCFGPaperSigmas", {"model": ("base", 0), "steps": 25, "denoise": 1.0}),
            },
            "Sampling": {"sampler": Node("SamplerCustom", {
                "model": ("patch", 0), "add_noise": True, "noise_seed": 2312, "cfg": 2.5, "positive": ("control", 0),
                "negative": ("null", 0), "sampler": ("method", 0), "sigmas": ("sigmas", 0),
                "latent_image": ("size", 0)})},
            "Image": images("paper"),
        },
    ),
]
