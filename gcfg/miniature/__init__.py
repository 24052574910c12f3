"""The method in miniature: tiny models on drawn pictures, for the demo and the benchmark. Plain torch, no host."""
