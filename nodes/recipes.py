"""Nodes that write several guidances at once: rows of a stack, a line of text; and the chain back to text."""

from comfy_api.latest import io

from ..gcfg.guidance import Guidance, Prediction
from ..gcfg.guidance import text as lines
from ..gcfg.host.sampling.chain import Link, chain_of
from .guidance import GuidanceSocket
from .hosts import aliases

ROWS = 8
ROW = {"on": True, "scale": 2.5, "start_percent": 0.0, "end_percent": 1.0}
"""The settings of a row that is not written out: a workflow names only the rows that it uses."""
METADATA = "gcfg_recipe"
"""Under this key of its metadata a PNG holds the recipe."""


def row_inputs(number: int, prefix: str = "") -> list:
    """The inputs of one guidance of a stack."""
    def name(what: str) -> str:
        return f"{prefix}{what}_{number}"
    return [
        io.Conditioning.Input(name("conditioning"), optional=True, tooltip=(
            f"What guidance {number} predicts under. The sampler's negative (unconditional) conditioning if empty.")),
        io.Model.Input(name("model"), optional=True, tooltip=(
            f"The model of guidance {number}, e.g. a concept model. The sampler's model if empty.")),
        io.Boolean.Input(name("on"), default=ROW["on"], optional=True, tooltip=f"Whether guidance {number} acts."),
        io.Float.Input(name("scale"), default=ROW["scale"], min=-100.0, max=100.0, step=0.1, round=0.001,
                       optional=True, tooltip=(
            f"Strength of guidance {number}. Negative pushes away.")),
        io.Float.Input(name("start_percent"), default=ROW["start_percent"], min=0.0, max=1.0, step=0.001,
                       optional=True, tooltip=(
            f"Sampling progress at which guidance {number} begins to act.")),
        io.Float.Input(name("end_percent"), default=ROW["end_percent"], min=0.0, max=1.0, step=0.001,
                       optional=True, tooltip=(
            f"Sampling progress at which guidance {number} ends.")),
    ]


def stack_inputs() -> list:
    """A number of guidances and the inputs of each; newer hosts show as many as are asked for, older ones all."""
    counts = [str(number) for number in range(1, ROWS + 1)]
    tooltip = "How many guidances the node has."
    rows = {count: [entry for n in range(1, int(count) + 1) for entry in row_inputs(n)] for count in counts}
    if hasattr(io, "DynamicCombo"):
        options = [io.DynamicCombo.Option(count, inputs) for count, inputs in rows.items()]
        return [io.DynamicCombo.Input("guidances", options, tooltip=tooltip)]
    return [io.Combo.Input("guidances", options=counts, tooltip=tooltip),
            *(entry for n in range(1, ROWS + 1) for entry in row_inputs(n, "guidances."))]


class GCFGGuidanceStack(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="GCFGGuidanceStack",
            display_name="GCFG Guidance Stack",
            category="GCFG",
            description=("Up to eight guidances in one node, each with its own conditioning or model, scale, window "
                         "and switch. All are measured from the unconditional prediction."),
            **aliases("stack", "lora stack", "multi guidance", "composable", "several prompts", "cfg", "negative"),
            inputs=[
                *stack_inputs(),
                GuidanceSocket.Input("guidance", optional=True, tooltip="A chain to append to."),
            ],
            outputs=[GuidanceSocket.Output("chain", display_name="chain",
                                           tooltip="The chain, the guidances that are switched on at its end.")],
        )

    @classmethod
    def execute(cls, guidances, guidance=(), **values) -> io.NodeOutput:
        if not isinstance(guidances, dict):  # an older host: every row, under its full name
            count = int(guidances)
            guidances = {name.removeprefix("guidances."): value for name, value in values.items()}
        else:
            count = int(guidances["guidances"])
        return io.NodeOutput((*guidance, *(link for n in range(1, count + 1) if (link := stack_link(n, guidances)))))


def stack_link(number: int, values: dict) -> Link | None:
    """A row of a stack as a guidance, None if it is switched off."""
    row = {name: values.get(f"{name}_{number}", default) for name, default in ROW.items()}
    if not row["on"]:
        return None
    conditioning, model = values.get(f"conditioning_{number}"), values.get(f"model_{number}")
    start, end = row["start_percent"], row["end_percent"]
    if conditioning is None and model is None:
        raise ValueError(f"Guidance {number} of the stack has neither a conditioning nor a model: connect one, or "
                         f"switch on_{number} off.")
    if start > end:
        raise ValueError(f"start_percent_{number} {start} lies after end_percent_{number} {end}; exchange them.")
    return Link(model, conditioning, row["scale"], start, end)


class GCFGTextToGuidances(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="GCFGTextToGuidances",
            display_name="GCFG Text to Guidances",
            category="GCFG",
            description=("A chain of guidances from a line of text: prompts joined by AND, AND_NOT and AND_PERP, each "
                         "with a weight and a window: a cat AND a wizard :0.7 AND_NOT blurry :0.5 [0.2-0.8]"),
            **aliases("AND", "AND_NOT", "AND_PERP", "composable", "prompt", "negative", "cfg", "perp neg", "recipe"),
            inputs=[
                io.Clip.Input("clip", tooltip="The text encoder of the sampler's model."),
                io.String.Input("text", default="a cat AND a wizard :0.7 AND_NOT blurry :0.5 [0.2-0.8]", multiline=True,
                                tooltip=("Prompts joined by AND (adds), AND_NOT (pushes away) and AND_PERP (adds what "
                                         "is not along the first). ' :0.7' is a weight, ' [0.2-0.8]' a window of "
                                         "sampling progress; quotes keep a prompt as it is.")),
                io.Float.Input("scale", default=7.5, min=0.001, max=100.0, step=0.1, round=0.001, tooltip=(
                    "Strength of a prompt of weight 1: the cfg of a stock KSampler.")),
                GuidanceSocket.Input("guidance", optional=True, tooltip="A chain to append to."),
            ],
            outputs=[
                GuidanceSocket.Output("chain", display_name="chain", tooltip=(
                    "The chain with a guidance for each prompt at its end, for GCFG Guider.")),
            ],
        )

    @classmethod
    def execute(cls, clip, text, scale, guidance=()) -> io.NodeOutput:
        prompts = lines.parse(text)
        encoded = {prompt: clip.encode_from_tokens_scheduled(clip.tokenize(prompt))
                   for prompt in dict.fromkeys(p.text for p in prompts)}
        return io.NodeOutput((*guidance, *chain_of(lines.recipe(prompts, scale), {}, encoded)))


class GCFGGuidancesToText(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="GCFGGuidancesToText",
            display_name="GCFG Guidances to Text",
            category="GCFG",
            description=("A chain as a line of text, which Text to Guidances reads; pictures that pass through to Save "
                         "Image carry it in their metadata."),
            **aliases("recipe", "metadata", "png info", "save recipe", "AND", "export"),
            inputs=[
                GuidanceSocket.Input("guidance", tooltip="The chain."),
                io.Float.Input("scale", default=7.5, min=0.001, max=100.0, step=0.1, round=0.001, tooltip=(
                    "The scale that has weight 1 in the text, as in Text to Guidances.")),
                io.Image.Input("images", optional=True, tooltip=(
                    "Pictures on their way to Save Image, which then writes the text into their metadata.")),
            ],
            outputs=[
                io.String.Output("line", display_name="text", tooltip=(
                    "The guidances by their names, as a line of text.")),
                io.Image.Output("passed", display_name="images", tooltip="The pictures, unchanged, for Save Image."),
            ],
            hidden=[io.Hidden.extra_pnginfo],
        )

    @classmethod
    def execute(cls, guidance, scale, images=None) -> io.NodeOutput:
        text = lines.to_line(lines.prompts_of([as_guidance(n, link) for n, link in enumerate(guidance, 1)], scale))
        if isinstance(cls.hidden.extra_pnginfo, dict):
            cls.hidden.extra_pnginfo[METADATA] = {"text": text, "scale": scale}
        return io.NodeOutput(text, images)


def as_guidance(number: int, link: Link) -> Guidance:
    """What a line of text can say of a link."""
    across = (Prediction(), Prediction()) if link.perpendicular_to is not None else None
    return Guidance(Prediction(), scale=link.scale, start=link.start, end=link.end,
                    name=link.name or f"guidance {number}", perpendicular_to=across)


NODES = [GCFGGuidanceStack, GCFGTextToGuidances, GCFGGuidancesToText]
