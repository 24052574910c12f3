"""What the shipped workflows are made of.

A node is ``Node(class, inputs, title)``. An input that is a tuple ``(node, output number)`` is a link.
"""

from typing import NamedTuple


class Node(NamedTuple):
    kind: str
    inputs: dict
    title: str = ""


class App(NamedTuple):
    """What a person sees of a workflow without its graph: inputs (node, widget) in their order, and nodes that show."""

    inputs: list[tuple[str, str]]
    outputs: list[str]


class Workflow(NamedTuple):
    """One shipped workflow; ``below`` names the column that begins a second row."""

    title: str
    note: str
    columns: dict[str, dict[str, Node]]
    below: str = ""
    app: App | None = None

    def nodes(self) -> dict[str, Node]:
        return {name: node for column in self.columns.values() for name, node in column.items()}

    def kinds(self) -> set[str]:
        return {node.kind for node in self.nodes().values()}


BASE = "v1-5-pruned-emaonly-fp16.safetensors"
CONCEPT = "concept_faces.safetensors"
ADAPTER = "concept_faces_adapter.safetensors"
TUNED = "faces_fine_tuned.safetensors"
LORA = "faces_lora.safetensors"
STYLE = "watercolour style, soft washes of paint on paper"
RUN = "faces/faces.safetensors"
PIXEL_ART = "PixelArtRedmond15V-PixelArt-PIXARFK.safetensors"
SUBJECT, SECOND_SUBJECT = "my_dog.safetensors", "my_cat.safetensors"
CONTROLNET = "control_v11p_sd15_canny_fp16.safetensors"
FULL_CLIP = "model.safetensors"
SDXL, PHOTOMAKER = "sd_xl_base_1.0.safetensors", "photomaker-v1.bin"
IP_ADAPTER, IMAGE_ENCODER = "ip-adapter-plus_sd15.safetensors", "CLIP-ViT-H-14-laion2B-s32B-b79K.safetensors"
MOTION = "v3_sd15_mm.ckpt"

Z_IMAGE = ("z_image_bf16.safetensors", "qwen_3_4b.safetensors", "ae.safetensors")
QWEN = ("qwen_image_fp8_e4m3fn.safetensors", "qwen_2.5_vl_7b_fp8_scaled.safetensors", "qwen_image_vae.safetensors")
FLUX = ("flux1-dev.safetensors", "clip_l.safetensors", "t5xxl_fp16.safetensors", "ae.safetensors")
WAN = ("wan2.1_t2v_1.3B_fp16.safetensors", "umt5_xxl_fp8_e4m3fn_scaled.safetensors", "wan_2.1_vae.safetensors")
Z_IMAGE_LORA, QWEN_LORA = "faces_z_image_lora.safetensors", "faces_qwen_image_lora.safetensors"
FLUX_LORA, WAN_LORA = "faces_flux_lora.safetensors", "faces_wan_lora.safetensors"


def split_files(repository: str, folder: str, *names: str) -> dict[str, tuple[str, str]]:
    """Files of a repackaged model, each in the folder where a stock loader looks for it."""
    address = f"https://huggingface.co/Comfy-Org/{repository}/resolve/main/split_files/{folder}"
    return {name: (folder, f"{address}/{name}") for name in names}


# The folder that a file belongs into, for each kind of node where they differ, and where it can be had, as the host's
# own templates say; concept models are the user's own.
SOURCES = {
    **split_files("z_image", "diffusion_models", Z_IMAGE[0]),
    **split_files("z_image_turbo", "text_encoders", Z_IMAGE[1]), **split_files("z_image_turbo", "vae", Z_IMAGE[2]),
    **split_files("Qwen-Image_ComfyUI", "diffusion_models", QWEN[0]),
    **split_files("Qwen-Image_ComfyUI", "text_encoders", QWEN[1]), **split_files("Qwen-Image_ComfyUI", "vae", QWEN[2]),
    **split_files("Wan_2.1_ComfyUI_repackaged", "diffusion_models", WAN[0]),
    **split_files("Wan_2.1_ComfyUI_repackaged", "text_encoders", WAN[1]),
    **split_files("Wan_2.1_ComfyUI_repackaged", "vae", WAN[2]),
    FLUX[0]: ("diffusion_models", "https://huggingface.co/Comfy-Org/flux1-dev/resolve/main/" + FLUX[0]),
    **{name: ("text_encoders", "https://huggingface.co/comfyanonymous/flux_text_encoders/resolve/main/" + name)
       for name in FLUX[1:3]},
    BASE: ("checkpoints", "https://huggingface.co/Comfy-Org/stable-diffusion-v1-5-archive/resolve/main/" + BASE),
    CONTROLNET: ("controlnet", "https://huggingface.co/comfyanonymous/ControlNet-v1-1_fp16_safetensors/resolve/main/"
                 + CONTROLNET),
    SDXL: ("checkpoints", "https://huggingface.co/stabilityai/stable-diffusion-xl-base-1.0/resolve/main/" + SDXL),
    PHOTOMAKER: ("photomaker", "https://huggingface.co/TencentARC/PhotoMaker/resolve/main/" + PHOTOMAKER),
    IP_ADAPTER: ("ipadapter", "https://huggingface.co/h94/IP-Adapter/resolve/main/models/" + IP_ADAPTER),
    IMAGE_ENCODER: ("clip_vision",
                    "https://huggingface.co/h94/IP-Adapter/resolve/main/models/image_encoder/model.safetensors"),
    MOTION: ("animatediff_models", "https://huggingface.co/guoyww/animatediff/resolve/main/" + MOTION),
    FULL_CLIP: ({"CLIPVisionLoader": "clip_vision", "GCFGTuneWords": "text_encoders"},
                "https://huggingface.co/openai/clip-vit-large-patch14/resolve/main/" + FULL_CLIP),
    PIXEL_ART: ("loras", "https://huggingface.co/artificialguybr/pixelartredmond-1-5v-pixel-art-loras-for-sd-1-5/resolve/"
                "main/" + PIXEL_ART),
}

GLASSES = "a photo of a person wearing glasses"
OFFICIAL = {"steps": 25, "sampler_name": "dpmpp_2m", "scheduler": "sgm_uniform"}


def checkpoint() -> Node:
    return Node("CheckpointLoaderSimple", {"ckpt_name": BASE}, "Base model")


def unet(name: str = CONCEPT, title: str = "Concept model") -> Node:
    return Node("UNETLoader", {"unet_name": name, "weight_dtype": "default"}, title)


def prompt(text: str, title: str) -> Node:
    return Node("CLIPTextEncode", {"text": text, "clip": ("base", 1)}, title)


def unconditional() -> Node:
    return prompt("", "Unconditional (empty prompt)")


def size() -> Node:
    return Node("EmptyLatentImage", {"width": 512, "height": 512, "batch_size": 1}, "Image size")


def photo() -> dict[str, Node]:
    scaling = {"image": ("load", 0), "upscale_method": "lanczos", "width": 512, "height": 512, "crop": "center"}
    return {"load": Node("LoadImage", {"image": "example.png"}), "scale": Node("ImageScale", scaling)}


def guidance(title: str, scale: float, **inputs) -> Node:
    settings = {"scale": scale, "start_percent": 0.0, "end_percent": 1.0, "reference": "unconditional",
                "name": title}
    return Node("GCFGGuidance", settings | inputs, title)


def sampler(**inputs) -> Node:
    settings = {"model": ("base", 0), "positive": ("control", 0), "negative": ("null", 0), "latent_image": ("size", 0),
                "seed": 2312, "concept_scale": 1.5, "control_scale": 2.5, "denoise": 1.0, **OFFICIAL}
    return Node("GCFGKSampler", settings | inputs)


def several(kind: str, **inputs) -> Node:
    """A node that samples several times as KSampler (GCFG) does once, with a concept model and the autoencoder."""
    settings = {"model": ("base", 0), "concept_model": ("concept", 0), "positive": ("control", 0),
                "negative": ("null", 0), "latent_image": ("size", 0), "seed": 2312, "denoise": 1.0, "vae": ("base", 2)}
    return Node(kind, settings | OFFICIAL | inputs)


def stack(*rows: tuple) -> Node:
    """GCFG Guidance Stack; a row is conditioning, scale, start_percent, end_percent."""
    inputs: dict = {"guidances": str(len(rows))}
    for number, (conditioning, scale, start, end) in enumerate(rows, 1):
        row = {"conditioning": conditioning, "on": True, "scale": scale, "start_percent": start, "end_percent": end}
        inputs |= {f"guidances.{name}_{number}": value for name, value in row.items()}
    return Node("GCFGGuidanceStack", inputs)


def guider(chain: tuple) -> Node:
    return Node("GCFGGuider", {"model": ("base", 0), "negative": ("null", 0), "guidance": chain})


def noise_and_levels(scheduler: str = "sgm_uniform") -> dict[str, Node]:
    """Noise, sampler and noise levels for ``custom_sampler``."""
    levels = {"model": ("base", 0), "scheduler": scheduler, "steps": 25, "denoise": 1.0}
    return {"noise": Node("RandomNoise", {"noise_seed": 2312}),
            "method": Node("KSamplerSelect", {"sampler_name": "dpmpp_2m"}),
            "sigmas": Node("BasicScheduler", levels)}


def settings(chain: tuple, scheduler: str = "sgm_uniform") -> dict[str, Node]:
    """A guider of a chain and the rest that ``custom_sampler`` needs."""
    return {"guider": guider(chain), **noise_and_levels(scheduler)}


def custom_sampler() -> Node:
    return Node("SamplerCustomAdvanced", {
        "noise": ("noise", 0), "guider": ("guider", 0), "sampler": ("method", 0), "sigmas": ("sigmas", 0),
        "latent_image": ("size", 0)})


def save(prefix: str, picture: tuple) -> Node:
    return Node("SaveImage", {"images": picture, "filename_prefix": f"gcfg/{prefix}"})


def images(prefix: str, latent: tuple = ("sampler", 0)) -> dict[str, Node]:
    return {"decode": Node("VAEDecode", {"samples": latent, "vae": ("base", 2)}),
            "save": save(prefix, ("decode", 0))}


def training(**inputs) -> Node:
    """Train Concept Model with the paper's recipe, all settings written out as the frontend writes them."""
    settings = {
        "model": ("base", 0), "clip": ("base", 1), "images": ("pictures", 0), "run_name": "faces", "target_steps": 5000,
        "method": "full", "rank": 16, "memory": "auto", "learning_rate": 1e-5, "batch": 32, "ema": True, "seed": 0,
        "save_every": 250, "preview_every": 250, "preview_prompt": "", "preview_steps": 20, "held_out": 16,
        "held_out_every": 50, "schedule": "constant", "warm_up": 0, "optimizer": "auto", "weight_decay": 0.01,
        "gradient_clip": 1.0, "ema_decay": 0.9999, "ema_device": "auto", "precision": "auto", "micro_batch": 0,
        "checkpointing": "auto", "fused_backward": False, "min_snr": 0.0, "noise_offset": 0.0,
        "keep": 2, "export_every": 0, "preview_scales": "1, 1.5", "preview_count": 2, "timesteps": "uniform",
        "repeats": "", "undistill": 0.0, "ema_precision": "float32", "compile": False,
    }
    return Node("GCFGTrainConceptModel", settings | inputs)


def subject_images(folder: str = "pictures/my_dog", title: str = "") -> Node:
    return Node("GCFGSubjectImages", {"vae": ("base", 2), "folder": folder, "resolution": 512, "flip": True,
                                      "augment": True, "masks": "", "variants": 64}, title)


def subject_training(**inputs) -> Node:
    """Train Subject with the paper's recipe, all settings written out."""
    settings = {
        "model": ("base", 0), "clip": ("base", 1), "images": ("pictures", 0), "name": "my_dog", "class_word": "dog",
        "target_steps": 500, "method": "K and V", "rank": 16, "semantic_weight": 0.25, "learning_rate": 2e-5,
        "batch": 2, "seed": 0, "save_every": 100, "preview_every": 100, "preview_prompt": "wearing sunglasses",
        "preview_steps": 20, "memory": "auto", "words": 1, "initial_word": "ktn", "initial_embedding": "",
    }
    return Node("GCFGTrainSubject", settings | inputs)


def class_guided(**inputs) -> Node:
    settings = {"preset": "class-guided", "positive": ("named", 0), "conditioning_2": ("class", 0), "scale": 7.5,
                "scale_2": 5.0, "weight": 0.0}
    return Node("GCFGPreset", settings | inputs, "Class-guided")


def lora(name: str, title: str) -> Node:
    return Node("LoraLoaderModelOnly", {"model": ("base", 0), "lora_name": name, "strength_model": 1.0}, title)


def numbered(workflows: list[Workflow]) -> list[Workflow]:
    """The workflows with their place in the reading order in front of their titles."""
    return [workflow._replace(title=f"{number:02} {workflow.title}") for number, workflow in enumerate(workflows, 1)]


def prompts(text: str = GLASSES) -> dict[str, Node]:
    return {"control": prompt(text, "Control prompt"), "null": unconditional()}
