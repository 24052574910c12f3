"""The pack's nodes: thin V3 nodes over ``gcfg.host``."""

from comfy_api.latest import ComfyExtension, io

from . import attention, grids, guidance, insight, loaders, recipes, sampling, subjects, training, words


class GCFGExtension(ComfyExtension):
    """Every node of the pack."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [*sampling.NODES, *guidance.NODES, *recipes.NODES, *insight.NODES, *grids.NODES, *loaders.NODES,
                *training.NODES, *attention.NODES, *subjects.NODES, *words.NODES]
