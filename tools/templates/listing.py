"""Further workflows of the listing (docs/PAPERS.md): words tuned apart, a noise that was found, an identity encoder."""

from .parts import (
    FULL_CLIP,
    LORA,
    PHOTOMAKER,
    SDXL,
    Node,
    Workflow,
    checkpoint,
    guidance,
    guider,
    images,
    lora,
    photo,
    prompt,
    sampler,
    save,
    subject_images,
    unconditional,
)

EULER = {"sampler_name": "euler", "scheduler": "normal"}
PORTRAIT = "a man as an astronaut, portrait photo"


def euler(guided: tuple, sigmas: str, latent: tuple) -> Node:
    """SamplerCustomAdvanced over given noise levels, in either direction, without noise of its own."""
    return Node("SamplerCustomAdvanced", {"noise": ("none", 0), "guider": guided, "sampler": ("method", 0),
                                          "sigmas": (sigmas, 0), "latent_image": latent})


LISTING = [
    Workflow(
        "Tune Concept Words",
        "**Words for things that look alike.** Tuned before any training, so that one picture does not mix them up.\n\n"
        "Load a base checkpoint and a whole CLIP-L (**models/clip_vision** and **models/text_encoders**); name two "
        "folders of pictures, best with masks.\n\n"
        "Then *Your Own Subject* for each, with its word as **initial_embedding**, and *Two Subjects*.",
        {
            "Models": {"base": checkpoint(),
                       "vision": Node("CLIPVisionLoader", {"clip_name": FULL_CLIP}, "CLIP-L, vision")},
            "Pictures": {"joe": subject_images("pictures/joe", "First thing"),
                         "wukong": subject_images("pictures/wukong", "Second thing")},
            "Tuning": {"words": Node("GCFGTuneWords", {
                "clip": ("base", 1), "clip_vision": ("vision", 0), "clip_file": FULL_CLIP, "images_1": ("joe", 0),
                "images_2": ("wukong", 0), "names": "joe, wukong", "nouns": "man, monkey", "run_name": "words",
                "target_steps": 1000, "learning_rate": 1e-4, "batch": 32, "views": 16, "seed": 0})},
            "Words": {"prompt": Node("PreviewAny", {"source": ("words", 0)}, "In a prompt"),
                      "save": save("words", ("words", 1))},
        },
    ),
    Workflow(
        "A Tuned Model on a Picture's Noise",
        "**A subject's own noise.** A picture of it is run back to noise; from there a tuned model makes a new one.\n\n"
        "Load a base checkpoint (SD1.5, SDXL), a LoRA of your subject, and a picture of it.\n\n"
        "Personalization guidance measures the LoRA from a half forgotten one: **weight** 0 is the base, 1 the LoRA.",
        {
            "Models": {"base": checkpoint(), "tuned": lora(LORA, "LoRA of the subject")},
            "Picture": {**photo(), "encode": Node("VAEEncode", {"pixels": ("scale", 0), "vae": ("base", 2)})},
            "Conditions": {"control": prompt("a photo of sks person riding a bicycle", "With the LoRA's words"),
                           "null": unconditional()},
            "Noise levels": {
                "method": Node("KSamplerSelect", {"sampler_name": "euler"}),
                "sigmas": Node("BasicScheduler", {"model": ("base", 0), "scheduler": "normal", "steps": 25,
                                                  "denoise": 1.0}),
                "flipped": Node("FlipSigmas", {"sigmas": ("sigmas", 0)}),
                "none": Node("DisableNoise", {}),
            },
            "Back to noise": {
                "plain": Node("BasicGuider", {"model": ("base", 0), "conditioning": ("null", 0)}),
                "noise": euler(("plain", 0), "flipped", ("encode", 0)),
            },
            "Guidance": {
                "preset": Node("GCFGPreset", {
                    "preset": "personalization guidance", "positive": ("control", 0), "model": ("base", 0),
                    "model_2": ("tuned", 0), "scale": 5.0, "scale_2": 1.0, "weight": 0.5}),
                "guider": guider(("preset", 0)),
            },
            "Sampling": {"sampler": euler(("guider", 0), "sigmas", ("noise", 0))},
            "Image": images("own noise"),
        },
        below="Back to noise",
    ),
    Workflow(
        "PhotoMaker, Refined from the Class",
        "**An identity from one picture.** PhotoMaker's prompt adds what is that person's own to the plain prompt.\n\n"
        "Load an SDXL checkpoint, PhotoMaker V1 (**models/photomaker**), and a picture of a face.\n\n"
        "The word *photomaker* stands behind the class word. The guidance's scale is the likeness; start later "
        "(**start_percent**) for more freedom.",
        {
            "Models": {"base": Node("CheckpointLoaderSimple", {"ckpt_name": SDXL}, "Base model"),
                       "photomaker": Node("PhotoMakerLoader", {"photomaker_model_name": PHOTOMAKER})},
            "Conditions": {
                "control": prompt(PORTRAIT, "Class prompt"),
                "face": Node("LoadImage", {"image": "example.png"}, "The face"),
                "person": Node("PhotoMakerEncode", {
                    "photomaker": ("photomaker", 0), "image": ("face", 0), "clip": ("base", 1),
                    "text": PORTRAIT.replace("man", "man photomaker")}, "With the identity"),
                "null": unconditional(),
                "size": Node("EmptyLatentImage", {"width": 1024, "height": 1024, "batch_size": 1}, "Image size"),
            },
            "Guidance": {"identity": guidance("Identity", 4.0, reference="custom", conditioning=("person", 0),
                                              reference_conditioning=("control", 0), start_percent=0.1)},
            "Sampling": {"sampler": sampler(concept_scale=0.0, control_scale=5.0, guidance=("identity", 0))},
            "Image": images("photomaker"),
        },
    ),
]
