"""GCFG in diffusers pipelines: the method of ``gcfg.guidance``, and concept models in pipelines that people have.

Floor 2 of the house beside ``gcfg.host``: the only part that imports diffusers (``pip install "gcfg[diffusers]"``).

    from gcfg.guidance import presets
    from gcfg.pipelines import concept_unet, guided, text

    pipeline = StableDiffusionPipeline.from_pretrained(...)
    recipe = presets.concept_centric(control_scale=2.5, concept_scale=1.5)
    with guided(pipeline, recipe, models={"concept": concept_unet("faces.safetensors", pipeline.unet)},
                conditionings={"unconditional": text(pipeline, "")}):
        picture = pipeline("wearing glasses", guidance_scale=1.0).images[0]
"""

from .files import concept_unet, load
from .guided import guided, text

__all__ = ["concept_unet", "guided", "load", "text"]
