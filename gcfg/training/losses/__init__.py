"""Objectives, one function a formula: tensors in, a loss of each sample out. No model, no files, no settings."""
