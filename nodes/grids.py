"""Nodes that sample several times and lay the results side by side."""

import comfy.samplers
from comfy_api.latest import io, ui
from comfy_execution.graph import ExecutionBlocker
from nodes import common_ksampler

from ..gcfg.host.recipes import grid
from ..gcfg.host.recipes.axes import AXES, CONCEPT, Cell, axis
from .hosts import aliases
from .sampling import (
    MAX_SEED,
    concept_chain,
    guidance_input,
    inputs_after_seed,
    inputs_before_seed,
    patched,
    performance_input,
)

CATEGORY = "GCFG/insight"


def sample_cells(cells, positive, negative, latent_image, denoise, performance) -> tuple[dict, grid.GridProgress]:
    """The LATENTs of all cells as one, and their progress, to be finished with the picture of them."""
    progress, latents = grid.GridProgress(cells[0].model, len(cells)), []
    for number, cell in enumerate(cells):
        model = progress.watched(patched(cell.model, cell.links, cell.control_scale, performance), number)
        latents.append(common_ksampler(model, cell.seed, cell.steps, cell.control_scale, cell.sampler_name,
                                       cell.scheduler, positive, negative, latent_image, denoise=denoise)[0])
    return grid.joined(latents), progress


def denoise_input():
    return io.Float.Input("denoise", default=1.0, min=0.0, max=1.0, step=0.01, tooltip=(
        "The amount of denoising; lower values keep the structure of the latent image."))


def grid_outputs() -> list:
    return [
        io.Latent.Output("latent", display_name="latent", tooltip="All cells as one batch, row by row."),
        io.Image.Output("grid", display_name="grid", tooltip=(
            "The labelled grid, one for each latent image. Needs the vae.")),
    ]


def grid_of(latent, progress, vae, rows, columns, node) -> io.NodeOutput:
    """What a grid node gives and shows; without a vae the latents alone."""
    if vae is None:
        return io.NodeOutput(latent, ExecutionBlocker("Connect a vae to the grid node for its grid output."))
    image = grid.decoded(vae, latent, rows, columns)
    progress.finish(image)
    return io.NodeOutput(latent, image, ui=ui.PreviewImage(image, cls=node))


class GCFGScaleGrid(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="GCFGScaleGrid",
            display_name="GCFG Scale Grid",
            category=CATEGORY,
            description=("Samples with every pair of a concept scale and a control scale, from the same noise: a row "
                         "for each concept scale, a column for each control scale."),
            is_output_node=True,
            **aliases("xy plot", "grid", "sweep", "compare", "cfg"),
            inputs=[
                *inputs_before_seed(),
                io.Int.Input("seed", default=0, min=0, max=MAX_SEED, control_after_generate=True,
                             tooltip="The random seed of the noise, the same in every cell."),
                io.Int.Input("steps", default=25, min=1, max=10000, tooltip="The number of denoising steps."),
                io.String.Input("concept_scales", default="0, 1, 1.5, 2.5", tooltip=(
                    "Strengths of the concept guidance, separated by commas: one row each.")),
                io.String.Input("control_scales", default="1, 2.5, 5", tooltip=(
                    "Strengths of the text control, separated by commas: one column each.")),
                io.Combo.Input("sampler_name", options=comfy.samplers.KSampler.SAMPLERS, default="dpmpp_2m",
                               tooltip="The sampling algorithm."),
                io.Combo.Input("scheduler", options=comfy.samplers.KSampler.SCHEDULERS, default="sgm_uniform",
                               tooltip="How the noise level falls over the steps."),
                denoise_input(),
                guidance_input(),
                io.Vae.Input("vae", optional=True, tooltip="Decodes the cells for the labelled grid."),
                performance_input(),
            ],
            outputs=grid_outputs(),
        )

    @classmethod
    def execute(cls, model, positive, negative, latent_image, seed, steps, concept_scales, control_scales,
                sampler_name, scheduler, denoise, concept_model=None, guidance=(), vae=None,
                performance=None) -> io.NodeOutput:
        rows = grid.parse_scales(concept_scales, "concept_scales")
        columns = grid.parse_scales(control_scales, "control_scales")
        if concept_model is None and len(rows) > 1:
            raise ValueError("Without a concept_model there is nothing for concept_scales to scale; connect one, or "
                             "give a single number.")
        cells = [Cell(model, concept_chain(concept_model, concept, guidance), control, sampler_name, scheduler, steps,
                      seed) for concept in rows for control in columns]
        latent, progress = sample_cells(cells, positive, negative, latent_image, denoise, performance)
        labels = [f"concept {scale:g}" for scale in rows], [f"control {scale:g}" for scale in columns]
        return grid_of(latent, progress, vae, *labels, cls)


class GCFGGrid(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="GCFGGrid",
            display_name="GCFG Grid",
            category=CATEGORY,
            description=("Samples over a grid of any two of: scale, window or reference of a guidance, control scale, "
                         "sampler, scheduler, steps, seed, model."),
            is_output_node=True,
            **aliases("xy plot", "xyz plot", "grid", "sweep", "compare", "cfg", "seeds"),
            inputs=[
                *inputs_before_seed(),
                io.Int.Input("seed", default=0, min=0, max=MAX_SEED, control_after_generate=True,
                             tooltip="The random seed of the noise, where no axis varies it."),
                *inputs_after_seed(),
                denoise_input(),
                *axis_inputs("row", "scale", "0, 1, 2"),
                *axis_inputs("column", "seed", "1, 2, 3"),
                io.Model.Input("other_model", optional=True, tooltip=(
                    "Another base model, for the axis model with the values model, other_model.")),
                guidance_input(),
                io.Vae.Input("vae", optional=True, tooltip="Decodes the cells for the labelled grid."),
                performance_input(),
            ],
            outputs=grid_outputs(),
        )

    @classmethod
    def execute(cls, model, positive, negative, latent_image, seed, steps, concept_scale, control_scale, sampler_name,
                scheduler, denoise, row_axis, row_values, row_guidance, column_axis, column_values, column_guidance,
                concept_model=None, other_model=None, guidance=(), vae=None, performance=None) -> io.NodeOutput:
        rows, columns = axis(row_axis, row_values, row_guidance), axis(column_axis, column_values, column_guidance)
        models = {"model": model} | ({"other_model": other_model} if other_model is not None else {})
        plain = Cell(model, concept_chain(concept_model, concept_scale, guidance), control_scale, sampler_name,
                     scheduler, steps, seed, models)
        cells = [column.apply(row.apply(plain)) for row in rows for column in columns]
        latent, progress = sample_cells(cells, positive, negative, latent_image, denoise, performance)
        return grid_of(latent, progress, vae, [v.label for v in rows], [v.label for v in columns], cls)


def axis_inputs(name: str, kind: str, values: str) -> list:
    """What one axis of a grid varies, over which values."""
    return [
        io.Combo.Input(f"{name}_axis", options=list(AXES), default=kind, tooltip=(
            f"What changes from {name} to {name}. scale, window and reference belong to the guidance named below.")),
        io.String.Input(f"{name}_values", default=values, tooltip=(
            "Separated by commas. Numbers; windows such as 0-1, 0.2-0.8; names of samplers or schedulers; "
            "unconditional, previous guidance; model, other_model.")),
        io.String.Input(f"{name}_guidance", default=CONCEPT, tooltip=(
            "The name of the guidance for scale, window and reference: Concept, or one of the chain.")),
    ]


class GCFGCompare(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="GCFGCompare",
            display_name="GCFG Compare",
            category=CATEGORY,
            description=("Samples three times from the same noise and shows the results side by side: the base alone, "
                         "the concept alone, and all guidances together."),
            is_output_node=True,
            **aliases("compare", "side by side", "before after", "base concept all", "xy plot"),
            inputs=[
                *inputs_before_seed(),
                io.Int.Input("seed", default=0, min=0, max=MAX_SEED, control_after_generate=True,
                             tooltip="The random seed of the noise, the same for all."),
                *inputs_after_seed(),
                denoise_input(),
                io.Vae.Input("vae", tooltip="Decodes the results."),
                guidance_input(),
                performance_input(),
            ],
            outputs=[
                io.Image.Output("view", display_name="view", tooltip="The labelled results side by side."),
                io.Latent.Output("latent", display_name="latent", tooltip=(
                    "The results as one batch: base, concept, all. The last is that of KSampler (GCFG).")),
            ],
        )

    @classmethod
    def execute(cls, model, positive, negative, latent_image, seed, steps, concept_scale, control_scale, sampler_name,
                scheduler, denoise, vae, concept_model=None, guidance=(), performance=None) -> io.NodeOutput:
        concept, chain = concept_chain(concept_model, concept_scale, ()), tuple(guidance)
        if not concept and not chain:
            raise ValueError("There is nothing to compare with the base: connect a concept_model or a guidance.")
        middle = {"concept": (concept, 0.0)} if concept else {"guidances": (chain, 0.0)}
        ways = {"base": ((), control_scale), **middle, "all": (concept + chain, control_scale)}
        cells = [Cell(model, links, control, sampler_name, scheduler, steps, seed) for links, control in ways.values()]
        latent, progress = sample_cells(cells, positive, negative, latent_image, denoise, performance)
        image = grid.decoded(vae, latent, [""], list(ways))
        progress.finish(image)
        return io.NodeOutput(image, latent, ui=ui.PreviewImage(image, cls=cls))


NODES = [GCFGScaleGrid, GCFGGrid, GCFGCompare]
