"""The null-text concept model: its layer, its constants and its calibration. Plain torch, no host."""
