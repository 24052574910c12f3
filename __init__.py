"""GCFG for ComfyUI: generalized classifier-free guidance (arXiv 2312.08195) as a node pack."""

import logging

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """The host's entry to the pack's nodes; imports happen here so that tests run on a machine without a host."""
    try:
        from .nodes import GCFGExtension
    except Exception:
        logging.exception("GCFG could not be loaded.")  # the host prints one line without the traceback
        raise
    return GCFGExtension()
