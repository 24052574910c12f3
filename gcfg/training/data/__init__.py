"""What is trained on: pictures of a folder, their latents on disk, variants and views, and the batches of a step."""
