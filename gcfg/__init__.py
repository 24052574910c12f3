"""Generalized classifier-free guidance (GCFG, arXiv 2312.08195): the method, and its runtime inside ComfyUI.

``gcfg.guidance`` is the method in plain torch and needs no host; ``gcfg.host`` is the only part that imports ComfyUI.
"""
