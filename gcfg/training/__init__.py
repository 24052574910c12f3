"""Training of concept models: objectives, data, loop, resumable state. Plain torch, no host."""
