"""The expanded files in a real ComfyUI in this process: its own loaders and KSampler, and the pack's."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from gcfg import comfyui

from .expand import FILES

ROOT = Path(__file__).resolve().parents[2]
STEPS, SAMPLER, SCHEDULER, SIZE = 20, "dpmpp_2m", "simple", 64


def start(named: str = "") -> None:
    """ComfyUI's modules importable on the CPU, the pack as ``gcfg_pack`` (as the tests load it)."""
    comfyui.start(comfyui.find(named), cpu=True)
    if "gcfg_pack" not in sys.modules:
        spec = importlib.util.spec_from_file_location("gcfg_pack", ROOT / "__init__.py",
                                                      submodule_search_locations=[str(ROOT)])
        sys.modules["gcfg_pack"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["gcfg_pack"])


def pack() -> ModuleType:
    return sys.modules["gcfg_pack"]


@dataclass(frozen=True)
class Family:
    """MODELs, CLIP and VAE of ComfyUI."""

    base: object
    clip: object
    vae: object
    fine_tune: object
    concept: object
    lora: object
    trigger_lora: object

    @classmethod
    def load(cls, folder: Path) -> Family:
        """The files that ``expand`` wrote into ``folder``, by the nodes that a person uses."""
        import folder_paths
        import nodes

        for kind in ("checkpoints", "controlnet", "diffusion_models", "loras"):
            folder_paths.add_model_folder_path(kind, str((folder / kind).resolve()), is_default=True)
        name = {key: Path(file).name for key, file in FILES.items()}
        base, clip, vae = nodes.CheckpointLoaderSimple().load_checkpoint(name["base"])
        (fine_tune,) = nodes.UNETLoader().load_unet(name["fine_tune"], "default")
        from gcfg_pack.nodes.loaders import GCFGLoadConceptModel

        concept = GCFGLoadConceptModel.execute(base, name["concept"], 1.0).result[0]
        loras = [nodes.LoraLoaderModelOnly().load_lora_model_only(base, name[key], 1.0)[0]
                 for key in ("lora", "trigger_lora")]
        return cls(base, clip, vae, fine_tune, concept, *loras)

    def text(self, prompt: str):
        import nodes

        return nodes.CLIPTextEncode().encode(self.clip, prompt)[0]

    def stock(self, model, prompt: str, seed: int, cfg: float) -> Tensor:
        """A picture (64, 64, 3) of the stock KSampler."""
        import nodes

        latent = {"samples": torch.zeros(1, 4, SIZE // 8, SIZE // 8)}
        (out,) = nodes.KSampler().sample(model, seed, STEPS, cfg, SAMPLER, SCHEDULER, self.text(prompt), self.text(""),
                                         latent)
        return self.picture(out)

    def gcfg(self, concept, prompt: str, seed: int, concept_scale: float, control_scale: float) -> Tensor:
        """A picture (64, 64, 3) of KSampler (GCFG)."""
        from gcfg_pack.nodes.sampling import GCFGKSampler

        latent = {"samples": torch.zeros(1, 4, SIZE // 8, SIZE // 8)}
        out = GCFGKSampler.execute(self.base, self.text(prompt), self.text(""), latent, seed, STEPS, concept_scale,
                                   control_scale, SAMPLER, SCHEDULER, 1.0, concept_model=concept).result[0]
        return self.picture(out)

    def picture(self, latent) -> Tensor:
        import nodes

        return nodes.VAEDecode().decode(self.vae, latent)[0][0].cpu()
