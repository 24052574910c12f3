"""The shipped workflows as data: for each its title, what its note says, and its nodes in columns, left to right."""

from workflow_parts import (
    ADAPTER,
    CONTROLNET,
    GLASSES,
    LORA,
    OFFICIAL,
    RUN,
    SECOND_SUBJECT,
    SUBJECT,
    TUNED,
    Node,
    Workflow,
    checkpoint,
    class_guided,
    guidance,
    images,
    lora,
    photo,
    prompt,
    prompts,
    sampler,
    size,
    subject_images,
    subject_training,
    training,
    unet,
)

WORKFLOWS = [
    Workflow(
        "Concept and Control",
        "**The paper's sampler.** The concept model gives fidelity to its domain, the base follows the prompt.\n\n"
        "Load a base checkpoint, and a concept model made from it (**models/diffusion_models**).\n\n"
        "Raise **concept_scale** for fidelity, **control_scale** for the prompt; 1.5 to 2.5 each is a good start.",
        {
            "Models": {"base": checkpoint(), "concept": unet()},
            "Conditions": {**prompts(), "size": size()},
            "Sampling": {"sampler": sampler(concept_model=("concept", 0))},
            "Image": images("concept and control"),
        },
    ),
    Workflow(
        "Several Guidances",
        "**One model, several prompts, a scale for each.** Each Guidance adds scale x (prediction - unconditional).\n\n"
        "Load any checkpoint. The prompt has **control_scale**; the styles have scales of their own.\n\n"
        "A negative scale pushes away. Bypass a Guidance (Ctrl+B) to drop it; sweep a scale from -5 to 5.",
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
        "Stock KSampler on a Patched Model",
        "**GCFG in a workflow that you have.** Apply GCFG to Model adds the chain; the KSampler stays as it is.\n\n"
        "Load a base checkpoint, and a concept model made from it (**models/diffusion_models**).\n\n"
        "The KSampler's **cfg** is the control scale. Any sampler node that takes a MODEL works.",
        {
            "Models": {"base": checkpoint(), "concept": unet()},
            "Conditions": {**prompts(), "size": size()},
            "Guidance": {
                "guidance": guidance("Concept", 2.5, model=("concept", 0)),
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
                    "zero_star": False, "zero_init_steps": 0}),
            },
            "Guidances": {
                "text": guidance("Control", 2.5, conditioning=("control", 0)),
                "domain": guidance("Concept", 2.5, guidance=("text", 0), model=("concept", 0),
                                   schedule=("schedule", 0), shaping=("shaping", 0)),
            },
            "Settings": {
                "guider": Node("GCFGGuider", {"model": ("base", 0), "negative": ("null", 0),
                                              "guidance": ("domain", 0)}),
                "noise": Node("RandomNoise", {"noise_seed": 2312}),
                "method": Node("KSamplerSelect", {"sampler_name": "dpmpp_2m"}),
                "sigmas": Node("BasicScheduler", {"model": ("base", 0), "scheduler": "karras", "steps": 25,
                                                  "denoise": 1.0}),
            },
            "Sampling": {"sampler": Node("SamplerCustomAdvanced", {
                "noise": ("noise", 0), "guider": ("guider", 0), "sampler": ("method", 0), "sigmas": ("sigmas", 0),
                "latent_image": ("size", 0)})},
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
                "domain": guidance("Concept", 2.5, guidance=("text", 0), model=("concept", 0), end_percent=0.8),
            },
            "More guidances": {
                "away": guidance("Away from clutter", -1.0, guidance=("domain", 0), conditioning=("clutter", 0)),
                "guider": Node("GCFGGuider", {"model": ("base", 0), "negative": ("null", 0), "guidance": ("away", 0)}),
            },
            "Settings": {
                "noise": Node("RandomNoise", {"noise_seed": 2312}),
                "method": Node("KSamplerSelect", {"sampler_name": "dpmpp_2m"}),
                "sigmas": Node("BasicScheduler", {"model": ("base", 0), "scheduler": "karras", "steps": 25,
                                                  "denoise": 1.0}),
            },
            "Sampling": {"sampler": Node("SamplerCustomAdvanced", {
                "noise": ("noise", 0), "guider": ("guider", 0), "sampler": ("method", 0), "sigmas": ("sigmas", 0),
                "latent_image": ("size", 0)})},
            "Insight": {
                "inspect": Node("GCFGInspector", {"guider": ("guider", 0), "latent": ("sampler", 0)}),
                "numbers": Node("PreviewAny", {"source": ("inspect", 1)}, "CSV"),
            },
            "Image": images("inspected"),
        },
    ),
    Workflow(
        "Image to Image Translation",
        "**Translation.** The image keeps its layout and becomes one of the concept's domain.\n\n"
        "Load a base checkpoint, a concept model made from it, and an image.\n\n"
        "Lower **denoise** keeps more of the image; higher **concept_scale** moves it further into the domain.",
        {
            "Models": {"base": checkpoint(), "concept": unet()},
            "Image to translate": {
                **photo(),
                "encode": Node("VAEEncode", {"pixels": ("scale", 0), "vae": ("base", 2)}),
            },
            "Conditions": prompts("a portrait photo, wearing glasses"),
            "Sampling": {"sampler": sampler(concept_model=("concept", 0), latent_image=("encode", 0), denoise=0.65,
                                            concept_scale=2.0)},
            "Image": images("translation"),
        },
    ),
    Workflow(
        "ControlNet on the Control Guidance",
        "**Spatial control.** The ControlNet acts on the control guidance only, not on concept and unconditional.\n\n"
        "Load a base checkpoint, a concept model made from it, a ControlNet for the base, and an image.\n\n"
        "Only the positive output of Apply ControlNet is used: that keeps the ControlNet out of the unconditional.",
        {
            "Models": {"base": checkpoint(), "concept": unet()},
            "Edges": {
                **photo(),
                "edges": Node("Canny", {"image": ("scale", 0), "low_threshold": 0.2, "high_threshold": 0.5}),
            },
            "Conditions": {**prompts("a photo of a person, studio light"), "size": size()},
            "ControlNet": {
                "net": Node("ControlNetLoader", {"control_net_name": CONTROLNET}),
                "apply": Node("ControlNetApplyAdvanced", {
                    "positive": ("control", 0), "negative": ("null", 0), "control_net": ("net", 0),
                    "image": ("edges", 0), "strength": 1.0, "start_percent": 0.0, "end_percent": 1.0}),
            },
            "Sampling": {"sampler": sampler(concept_model=("concept", 0), positive=("apply", 0))},
            "Image": images("controlnet"),
        },
    ),
    Workflow(
        "Base and LoRA as the Concept",
        "**A LoRA as the concept model.** Both predictions run on one copy of the base's weights.\n\n"
        "Load a base checkpoint, and a LoRA of a domain or style (**models/loras**).\n\n"
        "The LoRA gives fidelity, the plain base keeps the prompt: connect the base, not the LoRA, to **model**.",
        {
            "Models": {
                "base": checkpoint(),
                "lora": Node("LoraLoaderModelOnly", {"model": ("base", 0), "lora_name": LORA, "strength_model": 1.0},
                             "Base + LoRA (concept)"),
            },
            "Conditions": {**prompts(), "size": size()},
            "Sampling": {"sampler": sampler(concept_model=("lora", 0))},
            "Image": images("lora concept"),
        },
    ),
    Workflow(
        "Concept Adapter",
        "**A concept as a small file.** An adapter on the base: base and concept run on one copy of the weights.\n\n"
        "Load a base checkpoint, and a concept adapter or null-text model made from it (**models/concept_models**).\n\n"
        "The concept model ignores all text; its prediction is the unconditional one of its domain.",
        {
            "Models": {
                "base": checkpoint(),
                "concept": Node("GCFGLoadConceptModel", {"model": ("base", 0), "concept_name": ADAPTER,
                                                         "strength": 1.0}),
                "about": Node("PreviewAny", {"source": ("concept", 1)}, "What was loaded"),
            },
            "Conditions": {**prompts(), "size": size()},
            "Sampling": {"sampler": sampler(concept_model=("concept", 0))},
            "Image": images("concept adapter"),
        },
    ),
    Workflow(
        "Make a Concept Adapter",
        "**From a fine-tuned model to a small file.** Converts it to null text, cuts that to an adapter, saves it.\n\n"
        "Load the base checkpoint, and a fine-tuned UNet of it (**models/diffusion_models**).\n\n"
        "Extraction is lossy: read the report, compare the image, and raise **rank** if it falls short.",
        {
            "Models": {"base": checkpoint(), "tuned": unet(TUNED, "Fine-tuned model")},
            "Conditions": {**prompts(), "size": size()},
            "Null text": {
                "convert": Node("GCFGConvertToNullText", {"model": ("tuned", 0), "conditioning": ("null", 0),
                                                          "samples": 8, "seed": 0}),
                "residual": Node("PreviewAny", {"source": ("convert", 1)}, "How far it was from constant"),
            },
            "Adapter": {
                "extract": Node("GCFGExtractConceptAdapter", {
                    "base_model": ("base", 0), "concept_model": ("convert", 0), "rank": 64, "target_error": 0.0}),
                "keep": Node("GCFGSaveConceptModel", {"model": ("extract", 0), "dtype": "fp16", "format": "concept",
                                                      "filename_prefix": "concept_models/faces"}),
                "report": Node("PreviewAny", {"source": ("extract", 1)}, "What was lost"),
            },
            "Check": {"sampler": sampler(concept_model=("extract", 0))},
            "Image": images("adapter check"),
        },
    ),
    Workflow(
        "Train a Concept Model",
        "**Your own concept model, from pictures without captions.** Interrupt it when you like; Run goes on.\n\n"
        "Load a base checkpoint, and name the **folder** of your pictures (some hundred or more of one kind).\n\n"
        "Hours of work for a GPU, and the queue waits: the help of Train Concept Model tells of the command line.",
        {
            "Models": {"base": checkpoint()},
            "Pictures": {
                "pictures": Node("GCFGImageFolder", {"vae": ("base", 2), "folder": "pictures/faces", "resolution": 512,
                                                     "crop": "buckets", "flip": True}),
                "about": Node("PreviewAny", {"source": ("pictures", 1)}, "What was found and skipped"),
            },
            "Training": {"train": training(preview_prompt=GLASSES)},
            "Conditions": {
                **prompts(), "size": size(),
                "place": Node("PreviewAny", {"source": ("train", 2)}, "Folder of the run"),
            },
            "Sampling": {"sampler": sampler(concept_model=("train", 0))},
            "Image": images("trained"),
        },
    ),
    Workflow(
        "Sample with the Trained Model",
        "**After training.** The trained model beside its base, and the same without it to compare.\n\n"
        "Load the base checkpoint, and the concept model from the run's folder (**output/concept_models**).\n\n"
        "More **concept_scale** is more of the pictures, more **control_scale** more of the prompt.",
        {
            "Models": {
                "base": checkpoint(),
                "concept": Node("GCFGLoadConceptModel", {"model": ("base", 0), "concept_name": RUN, "strength": 1.0}),
                "about": Node("PreviewAny", {"source": ("concept", 1)}, "What was loaded"),
            },
            "Conditions": {**prompts(), "size": size()},
            "Sampling": {
                "sampler": sampler(concept_model=("concept", 0)),
                "plain": sampler(concept_scale=0.0, control_scale=7.5),
            },
            "Image": {
                **images("trained"),
                "decode_plain": Node("VAEDecode", {"samples": ("plain", 0), "vae": ("base", 2)}),
                "compare": Node("PreviewImage", {"images": ("decode_plain", 0)}, "The base alone"),
            },
        },
    ),
    Workflow(
        "Your Own Subject",
        "**One thing of your own that still listens.** A word and weights from 3 to 5 pictures.\n\n"
        "Load a base checkpoint, and name the **folder** of your pictures, the **name** and the **class_word**.\n\n"
        "The class leads, the subject adds what is its own: **scale_2** from 0 (any dog) to **scale** (your dog).",
        {
            "Models": {"base": checkpoint()},
            "Pictures": {
                "pictures": subject_images(),
                "about": Node("PreviewAny", {"source": ("pictures", 1)}, "What was found"),
            },
            "Training": {"train": subject_training()},
            "Conditions": {
                "request": Node("StringConcatenate", {"string_a": ("train", 1), "string_b": "wearing sunglasses",
                                                      "delimiter": " "}, "The subject, and what it shall do"),
                "named": Node("CLIPTextEncode", {"text": ("request", 0), "clip": ("base", 1)}, "With the subject"),
                "class": prompt("dog wearing sunglasses", "The same with the class alone"),
                "null": prompt("", "Unconditional (empty prompt)"),
                "size": size(),
            },
            "Guidance": {"preset": class_guided(model_2=("train", 0))},
            "Sampling": {"sampler": sampler(positive=("class", 0), concept_scale=0.0, control_scale=0.0,
                                            guidance=("preset", 0))},
            "Image": images("subject"),
        },
    ),
    Workflow(
        "Your Own Subject with a Concept Model",
        "**Your dog, in the concept's domain, as the prompt says.** Three guidances, one copy of the weights.\n\n"
        "Load a base checkpoint, your subject's LoRA (**models/loras**) and a concept adapter made from the base.\n\n"
        "The prompts name the subject and its class; **concept_scale** is how much of the domain.",
        {
            "Models": {
                "base": checkpoint(),
                "subject": lora(SUBJECT, "Your subject"),
                "concept": Node("GCFGLoadConceptModel", {"model": ("base", 0), "concept_name": ADAPTER,
                                                         "strength": 1.0}),
            },
            "Conditions": {
                "named": prompt("embedding:my_dog dog wearing sunglasses", "With the subject"),
                "class": prompt("dog wearing sunglasses", "The same with the class alone"),
                "null": prompt("", "Unconditional (empty prompt)"),
                "size": size(),
            },
            "Guidance": {"preset": class_guided(model_2=("subject", 0))},
            "Sampling": {"sampler": sampler(positive=("class", 0), concept_model=("concept", 0), concept_scale=1.5,
                                            control_scale=0.0, guidance=("preset", 0))},
            "Image": images("subject and concept"),
        },
    ),
    Workflow(
        "Two Subjects",
        "**Two of your own in one picture, each itself.** Every subject is a guidance, where its mask is.\n\n"
        "Load a base checkpoint and two subjects' LoRAs (**models/loras**), and name their words in the prompts.\n\n"
        "The prompt of the whole picture composes it; each subject adds what is its own, on its side.",
        {
            "Models": {
                "base": checkpoint(),
                "first": lora(SUBJECT, "First subject"),
                "second": lora(SECOND_SUBJECT, "Second subject"),
            },
            "Conditions": {
                "whole": prompt("a photo of a dog and a cat on a sofa", "The whole picture"),
                "dog": prompt("a photo of a embedding:my_dog dog on a sofa", "First subject's word"),
                "cat": prompt("a photo of a embedding:my_cat cat on a sofa", "Second subject's word"),
                "null": prompt("", "Unconditional (empty prompt)"),
                "size": size(),
            },
            "Places": {
                "everywhere": Node("SolidMask", {"value": 0.0, "width": 512, "height": 512}, "Nowhere"),
                "half": Node("SolidMask", {"value": 1.0, "width": 256, "height": 512}, "One half"),
                "left": Node("MaskComposite", {"destination": ("everywhere", 0), "source": ("half", 0), "x": 0, "y": 0,
                                               "operation": "add"}, "Left half"),
                "right": Node("InvertMask", {"mask": ("left", 0)}, "Right half"),
            },
            "Guidances": {
                "itself": guidance("First subject", 4.0, model=("first", 0), conditioning=("dog", 0),
                                   mask=("left", 0), reference="custom", reference_conditioning=("whole", 0)),
                "other": guidance("Second subject", 4.0, guidance=("itself", 0), model=("second", 0),
                                  conditioning=("cat", 0), mask=("right", 0), reference="custom",
                                  reference_conditioning=("whole", 0)),
            },
            "Sampling": {"sampler": sampler(positive=("whole", 0), concept_scale=0.0, control_scale=7.5,
                                            guidance=("other", 0))},
            "Image": images("two subjects"),
        },
    ),
]
