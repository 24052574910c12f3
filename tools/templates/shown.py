"""What the thumbnail of each shipped workflow shows: pictures that it makes on small models, or a card.

A thumbnail names a workflow by its title without the number. Its last panel is the result, those before it what the
result is made of, by changed inputs of the workflow's own nodes. A workflow whose models have no small form that draws
gets a card: a title to be read from afar.
"""

from typing import NamedTuple


class Panel(NamedTuple):
    """A picture and the line below it.

    Attributes:
        caption: the line.
        changes: inputs of nodes by their names; None takes an input away.
        save: the output (node, number) that is the picture; what the workflow saves if None.
        file: a picture of the repository to show instead, and the ``box`` to cut out of it.
    """

    caption: str
    changes: dict[str, dict] = {}
    save: tuple[str, int] | None = None
    file: str = ""
    box: tuple[int, int, int, int] | None = None


class Shown(NamedTuple):
    """Panels, and inputs by node that all of them have in ``common``."""

    panels: tuple[Panel, ...]
    common: dict[str, dict] = {}


class Card(NamedTuple):
    """A title in one line or more, a line below it, and at its side a picture that the workflow can make, if any."""

    title: str
    subtitle: str = ""
    save: tuple[str, int] | None = None
    caption: str = ""


def says(text: str, node: str = "control") -> dict[str, dict]:
    """The text of a prompt's node."""
    return {node: {"text": text}}


def sampled(**inputs) -> dict[str, dict]:
    """Changed inputs of the sampler."""
    return {"sampler": inputs}


BASE, ALONE = sampled(concept_scale=0.0), sampled(control_scale=0.0, concept_scale=1.0)
PICTURE = Panel("your picture", save=("scale", 0))
SUNGLASSES = "smiling face with sunglasses"
GLOSSY = {"lora_name": "gcfg_pictures_glossy_lora.safetensors"}
BLEEDING, EMOJI = "benchmarks/subjects/bleeding.jpg", "benchmarks/subjects/emoji.jpg"


def sum_of(prompt: str, concept: str, result: str, **common) -> Shown:
    """The base and the concept alone, and both."""
    return Shown((Panel("base", BASE), Panel(concept, ALONE), Panel(result)), says(prompt) | common)


SHOWN: dict[str, Shown | Card] = {
    "Base and LoRA as the Concept": sum_of("smiling face with halo", "LoRA", "base + LoRA"),
    "Concept and Control": sum_of(SUNGLASSES, "concept", "base + concept"),
    "Concept Adapter": sum_of("cowboy hat face", "adapter", "base + adapter"),
    "Compare Base and Concept": Shown((Panel("one seed, three ways"),), says("smiling face with hearts")),
    "Scale Grid": Shown((Panel("which scales?"),), says(SUNGLASSES)),
    "Image to Image Translation": Shown((PICTURE, Panel("in the concept's domain")), says("loudly crying face")),
    "Concept-centric Stylization": Shown((Panel("concept", ALONE), Panel("concept + style")),
                                         says("flat") | sampled(seed=1)),
    "ControlNet on the Control Guidance": Shown(
        (Panel("edges", save=("edges", 0)), Panel("the concept along them")), says("loudly crying face")),
    "Several Guidances": Shown(
        (Panel("prompt", sampled(guidance=None)), Panel("+ second", {"away": {"scale": 0.0}}),
         Panel("+ second - third")),
        says("cat face") | says("crying face", "minimalist") | says("noto", "clutter")
        | sampled(control_scale=3.0) | {"towards": {"scale": 2.0}, "away": {"scale": -1.0}}),
    "Guidance Stack": Shown(
        (Panel("cowboy hat", sampled(guidance=None)), Panel("cowboy hat + sunglasses")),
        says("cowboy hat face") | says("face with sunglasses", "minimalist") | says("noto", "clutter")
        | sampled(control_scale=2.0)
        | {"stack": {"guidances.scale_1": 2.0, "guidances.scale_2": -0.2}}),
    "Text to Guidances": Shown(
        (Panel("cat face", {"chain": {"text": "cat face"}}), Panel("cat face AND cowboy hat face")),
        {"chain": {"text": "cat face AND cowboy hat face", "scale": 2.0}, "noise": {"noise_seed": 3}}),
    "Guidance Preset": Shown((Panel("prompt", {"preset": {"scale_2": 0.0}}), Panel("Perp-Neg: not noto")),
                             says("crying cat") | says("noto", "avoid")),
    "Stock KSampler on a Patched Model": Shown(
        (Panel("KSampler", {"guidance": {"scale": 0.0}}), Panel("KSampler, patched")), says("smiling face with horns")),
    "Custom Sampling with the GCFG Guider": Shown(
        (Panel("unshaped", {"domain": {"schedule": None, "shaping": None}}), Panel("shaped, scheduled")),
        says("smiling face with heart-eyes")),
    "Inspect Guidance": Shown((Panel("each guidance, step by step", save=("inspect", 0)),), says(SUNGLASSES)),
    "Train a Concept Model": Shown((Panel("200 steps, three minutes, no captions",
                                          file="docs/training_example.jpg"),)),
    "Sample with the Trained Model": Shown((Panel("base alone", save=("decode_plain", 0)), Panel("trained")),
                                           says("smiling face with hearts")),
    "Make a Concept Adapter": Shown((Panel("base", BASE), Panel("with the adapter")), says("partying face")),
    "Your Own Subject": Shown((Panel("your pictures", file=EMOJI, box=(0, 18, 512, 146)),
                               Panel("a new word", file=EMOJI, box=(384, 456, 512, 584)),
                               Panel("wearing sunglasses", file=EMOJI, box=(384, 748, 512, 876)))),
    "Your Own Subject with a Concept Model": Shown(
        (Panel("class", {"preset": {"scale_2": 0.0}} | sampled(concept_scale=0.0)),
         Panel("+ subject", sampled(concept_scale=0.0)), Panel("+ subject + concept")),
        says("glossy face halo", "named") | says("smiling face with halo", "class")
        | {"preset": {"scale": 3.0, "scale_2": 1.0}, "subject": GLOSSY} | sampled(concept_scale=0.75)),
    "Two Subjects": Shown((Panel("both subjects", file=BLEEDING, box=(6, 30, 134, 94)),
                           Panel("each itself, together", file=BLEEDING, box=(1078, 30, 1206, 94)))),
    "Two LoRAs, Regions from Words": Shown((Panel("merged", file=BLEEDING, box=(274, 170, 402, 234)),
                                            Panel("each in its region", file=BLEEDING, box=(1078, 170, 1206, 234)))),
    "A Learned Word, Refined from its Class": Shown(
        (Panel("class", {"refine": {"scale": 0.0}}), Panel("+ the learned word")),
        says("crying cat") | says("crying cat noto", "word")),
    "Class First, Subject Later": Shown(
        (Panel("class", {"later": {"scale": 0.0}}), Panel("subject at once", {"later": {"start_percent": 0.0}}),
         Panel("class first")),
        says("cowboy hat face") | says("glossy cowboy hat face", "subject") | sampled(control_scale=3.0, seed=1)
        | {"later": {"scale": 2.0}, "tuned": GLOSSY}),
    "A Subject Led by a ControlNet": Shown(
        (Panel("prompt", {"led": {"scale": 0.0}}), Panel("edges", save=("edges", 0)), Panel("+ LoRA along them")),
        says("loudly crying face") | says("glossy loudly crying face", "subject") | sampled(control_scale=1.5)
        | {"led": {"scale": 2.0}, "tuned": GLOSSY}),
    "A Reference Picture by Shared Attention": Shown((Panel("reference", save=("scale", 0)), Panel("same look")),
                                                     says("cat face")),
    "App - Picture of a Concept": Shown((Panel("App: star-struck"),), says("star-struck")),
    "App - Translate a Picture": Shown((PICTURE, Panel("App: translated")), says("loudly crying face")),
    "App - Stylize a Concept": Shown((Panel("App: a style"),), says("flat") | sampled(seed=1)),
    "Tune Concept Words": Card("Tune words", "apart, before training"),
    "A Tuned Model on a Picture's Noise": Shown((PICTURE, Panel("from its own noise")), says("loudly crying face")),
    "PhotoMaker, Refined from the Class": Card("PhotoMaker", "refined from the class"),
    "Z-Image and a LoRA as the Concept": Card("Z-Image", "base + LoRA, one copy"),
    "Qwen-Image and a LoRA as the Concept": Card("Qwen-Image", "fp8 base + LoRA, one copy"),
    "Flux and a LoRA, Distilled": Card("FLUX", "distilled: base towards LoRA"),
    "Wan and a LoRA as the Concept": Card("Wan", "video: base + LoRA, one copy"),
    "IP-Adapter on a Guidance, Base Clean": Card("IP-Adapter", "on a guidance, base clean"),
    "A Personalized Video": Card("Personalized\nvideo", "your subject + AnimateDiff"),
    "The Paper's Settings, Exactly": Shown((Panel("base", {"guidance": {"scale": 0.0}}), Panel("arXiv 2312.08195")),
                                           says("winking face")),
}
