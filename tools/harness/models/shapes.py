"""Names and shapes of the tensors in Stable Diffusion 1.5 class files, shortened to what the host still detects.

The host tells an SD 1.5 UNet by its width (320) and its text width (768); the number of blocks is free. The text
encoder is not: CLIP-L has twelve layers in every file.
"""

Shapes = dict[str, tuple[int, ...]]

WIDTH, EMBED, TEXT, LATENT = 320, 1280, 768, 4


def unet() -> Shapes:
    """One level, one residual block down, the middle, two up: four attention blocks in all."""
    shapes = _down_and_middle()
    for block in (0, 1):
        shapes |= _residual(f"output_blocks.{block}.0", 2 * WIDTH) | _transformer(f"output_blocks.{block}.1")
    return shapes | _norm("out.0", WIDTH) | _conv("out.2", LATENT, WIDTH)


def controlnet() -> Shapes:
    """The ControlNet of ``unet``: its way down, the image encoder and the convolutions that lead out."""
    shapes = _down_and_middle()
    widths = [3, 16, 16, 32, 32, 96, 96, 256, WIDTH]
    for k in range(8):
        shapes |= _conv(f"input_hint_block.{2 * k}", widths[k + 1], widths[k])
    for name in ("zero_convs.0.0", "zero_convs.1.0", "middle_block_out.0"):
        shapes |= _conv(name, WIDTH, WIDTH, 1)
    return shapes


def clip_l() -> Shapes:
    """The text encoder, all twelve layers of it."""
    root = "transformer.text_model"
    shapes = {
        f"{root}.embeddings.token_embedding.weight": (49408, TEXT),
        f"{root}.embeddings.position_embedding.weight": (77, TEXT),
    }
    for k in range(12):
        shapes |= _encoder_layer(f"{root}.encoder.layers.{k}", TEXT)
    return shapes | _norm(f"{root}.final_layer_norm", TEXT)


def vision_l() -> Shapes:
    """CLIP-L's vision model (ViT-L/14) and both projections; the host takes it at full size only."""
    root, wide = "vision_model", 1024
    shapes = {
        f"{root}.embeddings.class_embedding": (wide,),
        f"{root}.embeddings.patch_embedding.weight": (wide, 3, 14, 14),
        f"{root}.embeddings.position_embedding.weight": (257, wide),
        "visual_projection.weight": (TEXT, wide),
        "text_projection.weight": (TEXT, TEXT),
    }
    for k in range(24):
        shapes |= _encoder_layer(f"{root}.encoder.layers.{k}", wide)
    return shapes | _norm(f"{root}.pre_layrnorm", wide) | _norm(f"{root}.post_layernorm", wide)


def taesd() -> Shapes:
    """The tiny autoencoder; the numbers are positions in its two sequences, d marks convolutions without a bias."""
    encoder = {0: 3, 1: "b", 2: "d", 3: "b", 4: "b", 5: "b", 6: "d", 7: "b", 8: "b", 9: "b", 10: "d", 11: "b", 12: "b"}
    decoder = {1: LATENT, 3: "b", 4: "b", 5: "b", 7: "d", 8: "b", 9: "b", 10: "b", 12: "d", 13: "b", 14: "b", 15: "b"}
    encoder |= {13: "b"}
    decoder |= {17: "d", 18: "b"}
    shapes = _conv("taesd_encoder.14", LATENT, 64) | _conv("taesd_decoder.19", 3, 64)
    for root, layers in (("taesd_encoder", encoder), ("taesd_decoder", decoder)):
        for position, kind in layers.items():
            name = f"{root}.{position}"
            if kind == "b":
                for k in (0, 2, 4):
                    shapes |= _conv(f"{name}.conv.{k}", 64, 64)
            elif kind == "d":
                shapes[f"{name}.weight"] = (64, 64, 3, 3)
            else:
                shapes |= _conv(name, 64, kind)
    return shapes


def _encoder_layer(layer: str, width: int) -> Shapes:
    """A layer of one of CLIP's encoders."""
    shapes = _linear(f"{layer}.mlp.fc1", 4 * width, width) | _linear(f"{layer}.mlp.fc2", width, 4 * width)
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        shapes |= _linear(f"{layer}.self_attn.{name}", width, width)
    return shapes | _norm(f"{layer}.layer_norm1", width) | _norm(f"{layer}.layer_norm2", width)


def _down_and_middle() -> Shapes:
    shapes = _linear("time_embed.0", EMBED, WIDTH) | _linear("time_embed.2", EMBED, EMBED)
    shapes |= _conv("input_blocks.0.0", WIDTH, LATENT)
    shapes |= _residual("input_blocks.1.0", WIDTH) | _transformer("input_blocks.1.1")
    shapes |= _residual("middle_block.0", WIDTH) | _transformer("middle_block.1")
    return shapes | _residual("middle_block.2", WIDTH)


def _residual(name: str, width: int) -> Shapes:
    shapes = _norm(f"{name}.in_layers.0", width) | _conv(f"{name}.in_layers.2", WIDTH, width)
    shapes |= _linear(f"{name}.emb_layers.1", WIDTH, EMBED)
    shapes |= _norm(f"{name}.out_layers.0", WIDTH) | _conv(f"{name}.out_layers.3", WIDTH, WIDTH)
    return shapes if width == WIDTH else shapes | _conv(f"{name}.skip_connection", WIDTH, width, 1)


def _transformer(name: str) -> Shapes:
    block = f"{name}.transformer_blocks.0"
    shapes = _norm(f"{name}.norm", WIDTH)
    shapes |= _conv(f"{name}.proj_in", WIDTH, WIDTH, 1) | _conv(f"{name}.proj_out", WIDTH, WIDTH, 1)
    for attention, width in (("attn1", WIDTH), ("attn2", TEXT)):
        shapes[f"{block}.{attention}.to_q.weight"] = (WIDTH, WIDTH)
        shapes[f"{block}.{attention}.to_k.weight"] = (WIDTH, width)
        shapes[f"{block}.{attention}.to_v.weight"] = (WIDTH, width)
        shapes |= _linear(f"{block}.{attention}.to_out.0", WIDTH, WIDTH)
    shapes |= _linear(f"{block}.ff.net.0.proj", 8 * WIDTH, WIDTH) | _linear(f"{block}.ff.net.2", WIDTH, 4 * WIDTH)
    for k in (1, 2, 3):
        shapes |= _norm(f"{block}.norm{k}", WIDTH)
    return shapes


def _linear(name: str, out: int, into: int) -> Shapes:
    return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}


def _conv(name: str, out: int, into: int, size: int = 3) -> Shapes:
    return {f"{name}.weight": (out, into, size, size), f"{name}.bias": (out,)}


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}
