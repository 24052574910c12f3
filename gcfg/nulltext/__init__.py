"""The null-text concept model: its layer, its files, its calibration and its adapters. Plain torch, no host."""
