"""The runtime inside ComfyUI: the only part of the pack that imports the host."""

KEY = "gcfg"
"""Under this key the pack keeps its wrappers, additional models and the state of a run; nobody else's are touched."""
