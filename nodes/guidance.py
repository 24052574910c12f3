"""Nodes that describe guidances: a chain, a schedule, a shaping."""

from comfy_api.latest import io

from ..gcfg.guidance import Performance, Schedule, Shaping
from ..gcfg.guidance.schedule import KINDS, parse_points
from ..gcfg.host.sampling.chain import REFERENCES, Link
from .hosts import aliases

GuidanceSocket = io.Custom("GCFG_GUIDANCE")
ScheduleSocket = io.Custom("GCFG_SCHEDULE")
ShapingSocket = io.Custom("GCFG_SHAPING")
PerformanceSocket = io.Custom("GCFG_PERFORMANCE")


class GCFGGuidance(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="GCFGGuidance",
            display_name="GCFG Guidance",
            category="GCFG",
            description="One guidance: scale x (prediction - reference). Chain several; bypass one to drop it.",
            **aliases("cfg", "lora", "negative", "composable", "AND", "AND_NOT", "perp neg", "autoguidance",
                      "apg", "pag", "style", "prompt weight", "mask"),
            inputs=[
                GuidanceSocket.Input("guidance", optional=True, tooltip="The chain of guidances so far."),
                io.Model.Input("model", optional=True,
                               tooltip="The model that predicts, e.g. a concept model. The sampler's model if empty."),
                io.Conditioning.Input("conditioning", optional=True, tooltip=(
                    "What it predicts under. The sampler's negative (unconditional) conditioning if empty, as a "
                    "null-text concept model wants it.")),
                io.Float.Input("scale", default=2.5, min=-100.0, max=100.0, step=0.1, round=0.001, tooltip=(
                    "Strength: multiplies the difference between prediction and reference. Negative pushes away, "
                    "0 switches the guidance off and costs nothing. For a concept 1 to 2, for a prompt 2 to 7.")),
                io.Float.Input("start_percent", default=0.0, min=0.0, max=1.0, step=0.001,
                               tooltip="Sampling progress at which the guidance begins to act."),
                io.Float.Input("end_percent", default=1.0, min=0.0, max=1.0, step=0.001, tooltip=(
                    "Sampling progress at which the guidance ends. Outside its window it costs no forward pass.")),
                io.Combo.Input("reference", options=list(REFERENCES), default=REFERENCES[0], tooltip=(
                    "What the prediction is measured from: the sampler's unconditional prediction, the prediction of "
                    "the previous guidance (in a sampler with a positive input, of that for the first one; the "
                    "unconditional one if there is none), or the reference inputs below.")),
                io.Model.Input("reference_model", optional=True, tooltip=(
                    "Model of a custom reference, e.g. a weaker model for AutoGuidance. The sampler's if empty.")),
                io.Conditioning.Input("reference_conditioning", optional=True, tooltip=(
                    "Conditioning of a custom reference. The sampler's negative conditioning if empty.")),
                io.Mask.Input("mask", optional=True, tooltip="Where the guidance acts; nothing changes outside."),
                ScheduleSocket.Input("schedule", optional=True, tooltip="Scale over sampling progress."),
                ShapingSocket.Input("shaping", optional=True, tooltip="Projection, norm limit, momentum, rescale."),
                io.String.Input("name", default="", optional=True, tooltip=(
                    "How Inspect Guidance and error messages call it. Numbered if empty.")),
            ],
            outputs=[GuidanceSocket.Output(display_name="guidance", tooltip="The chain, this guidance at its end.")],
        )

    @classmethod
    def execute(cls, scale, start_percent, end_percent, reference, guidance=(), model=None, conditioning=None,
                reference_model=None, reference_conditioning=None, mask=None, schedule=None, shaping=None,
                name="") -> io.NodeOutput:
        if reference != "custom" and (reference_model is not None or reference_conditioning is not None):
            raise ValueError("Reference inputs are connected but not used; set 'reference' to 'custom'.")
        if start_percent > end_percent:
            raise ValueError(f"start_percent {start_percent} lies after end_percent {end_percent}; exchange them.")
        return io.NodeOutput((*guidance, Link(
            model, conditioning, scale, start_percent, end_percent, reference, reference_model,
            reference_conditioning, mask, schedule or Schedule(), shaping or Shaping(), name.strip())))


class GCFGSchedule(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="GCFGSchedule",
            display_name="GCFG Guidance Schedule",
            category="GCFG",
            description="A factor on a guidance's scale over sampling progress, 0 (all noise) to 1 (done).",
            **aliases("cfg schedule", "dynamic cfg", "guidance interval", "curve", "scheduled cfg"),
            inputs=[
                io.Combo.Input("kind", options=list(KINDS), default="linear", tooltip=(
                    "constant: start_value throughout; linear, cosine, power: from start_value to end_value; "
                    "points: the list below, linear in between.")),
                io.Float.Input("start_value", default=1.0, min=-100.0, max=100.0, step=0.01,
                               tooltip="Factor at the beginning of sampling."),
                io.Float.Input("end_value", default=0.0, min=-100.0, max=100.0, step=0.01,
                               tooltip="Factor at the end of sampling."),
                io.Float.Input("exponent", default=2.0, min=0.01, max=100.0, step=0.01,
                               tooltip="Only for power: above 1 changes late, below 1 early."),
                io.String.Input("points", default="0: 1, 0.5: 1, 1: 0", tooltip=(
                    "Only for points: 'progress: factor', separated by commas or line breaks.")),
            ],
            outputs=[ScheduleSocket.Output(display_name="schedule", tooltip="For the schedule input of a Guidance.")],
        )

    @classmethod
    def execute(cls, kind, start_value, end_value, exponent, points) -> io.NodeOutput:
        parsed = parse_points(points) if kind == "points" else ()
        return io.NodeOutput(Schedule(kind, start_value, end_value, exponent, parsed))


class GCFGShaping(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="GCFGShaping",
            display_name="GCFG Guidance Shaping",
            category="GCFG",
            description="Keeps a strong guidance from oversaturating. The defaults change nothing.",
            **aliases("apg", "rescale cfg", "cfg zero", "zero star", "oversaturation", "burnt colours",
                      "dynamic thresholding", "momentum", "raag", "mambo-g", "few steps", "auto scale", "balance"),
            inputs=[
                io.Float.Input("parallel", default=1.0, min=-10.0, max=10.0, step=0.01, tooltip=(
                    "Factor on the part of the guidance along its prediction (APG, eta). 0 avoids oversaturation.")),
                io.Float.Input("orthogonal", default=1.0, min=-10.0, max=10.0, step=0.01,
                               tooltip="Factor on the part of the guidance across its prediction."),
                io.Float.Input("norm_limit", default=0.0, min=0.0, max=100.0, step=0.01, tooltip=(
                    "Largest size of the guidance in units of the unconditional prediction's, at any resolution. "
                    "0 sets no limit.")),
                io.Float.Input("momentum", default=0.0, min=-0.99, max=0.99, step=0.01, tooltip=(
                    "Running sum over the steps (APG). Negative values dampen what the steps agree on.")),
                io.Float.Input("rescale", default=0.0, min=0.0, max=1.0, step=0.01, tooltip=(
                    "Pulls the contrast of the guided prediction to that of the prediction (CFG rescale).")),
                io.Boolean.Input("zero_star", default=False,
                                 tooltip="Fits the reference to the prediction before guiding (CFG-Zero*)."),
                io.Int.Input("zero_init_steps", default=0, min=0, max=1000, tooltip=(
                    "Leaves the latent as it is for so many first steps (CFG-Zero*, for flow models).")),
                io.Float.Input("ratio_damping", default=0.0, min=0.0, max=100.0, step=0.1, optional=True, tooltip=(
                    "Dampens a scale above 1 where the guidance is large against its reference, as in the first of few "
                    "steps (RAAG, alpha). 8 to 12 for 4 to 10 steps; 0 does not.")),
                io.Float.Input("balance", default=0.0, min=0.0, max=100.0, step=0.05, optional=True, tooltip=(
                    "Keeps the size of the guidance at scale x balance times that of the control guidance (all others "
                    "together), at every step. 0 keeps its own size.")),
            ],
            outputs=[ShapingSocket.Output(display_name="shaping", tooltip="For the shaping input of a Guidance.")],
        )

    @classmethod
    def execute(cls, parallel, orthogonal, norm_limit, momentum, rescale, zero_star, zero_init_steps,
                ratio_damping=0.0, balance=0.0) -> io.NodeOutput:
        return io.NodeOutput(Shaping(parallel, orthogonal, norm_limit, momentum, rescale, zero_star, zero_init_steps,
                                     ratio_damping, balance))


class GCFGPerformance(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="GCFGPerformance",
            display_name="GCFG Guidance Performance",
            category="GCFG",
            description=("Saves forward passes: guidances are evaluated on some steps and reused in between. The "
                         "unconditional prediction is always fresh."),
            **aliases("faster", "speed", "skip steps", "cache", "adaptive guidance"),
            inputs=[
                io.Int.Input("refresh_every", default=2, min=1, max=100, tooltip=(
                    "Evaluate guidances on every so-manieth step and reuse them in between. 1 reuses nothing.")),
                io.Float.Input("calm_below", default=0.0, min=0.0, max=0.99, step=0.01, tooltip=(
                    "Adaptive: a guidance that changed by less than this fraction waits twice as long for its next "
                    "refresh, decided for each sample. 0 switches it off.")),
                io.Float.Input("concept_start", default=0.0, min=0.0, max=1.0, step=0.01, tooltip=(
                    "Sampling progress at which guidances of other models than the base begin.")),
                io.Float.Input("concept_end", default=1.0, min=0.0, max=1.0, step=0.01, tooltip=(
                    "Sampling progress at which guidances of other models than the base end.")),
            ],
            outputs=[PerformanceSocket.Output(display_name="performance", tooltip=(
                "For the performance input of a GCFG sampler, guider or patch."))],
        )

    @classmethod
    def execute(cls, refresh_every, calm_below, concept_start, concept_end) -> io.NodeOutput:
        return io.NodeOutput(Performance(refresh_every, calm_below, concept_start, concept_end))


NODES = [GCFGGuidance, GCFGSchedule, GCFGShaping, GCFGPerformance]
