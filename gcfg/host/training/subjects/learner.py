"""What a subject's run trains: the text encoder's new rows and the weights of the network, and their loss."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from ....training import memory
from ....training.data import variants
from ....training.losses.semantic import semantic_preservation
from ....training.run.task import Task
from ....training.subject_settings import SubjectSettings
from ..models.captioned import Captioned
from ..models.prompts import FixedPrompts
from ..models.text import SUPPORTED, TrainableText
from . import files as subject_files

CAPTION = "a photo of a"


class SubjectLearner:
    """The networks of a subject's run: text encoder, UNet, and what of them is trained.

    Args:
        base, clip: as for ``train``.
        settings, plan: how it is trained.
        device: where.
    """

    def __init__(self, base: ModelPatcher, clip, settings: SubjectSettings, plan: memory.Plan, device: torch.device):
        self.base, self.settings, self.device = base, settings, device
        self.text = text_for(clip, settings, device)
        check_class_word(self.text, settings.class_word)
        self.network = Captioned(base, settings.method, settings.rank, settings.seed, plan, device)
        self.parameters = dict(self.network.parameters)
        for encoder, row in self._first_rows().items():
            self.parameters[f"rows/{encoder}"] = nn.Parameter(row.to(device, torch.float32).clone())
        if settings.semantic_weight:
            with torch.no_grad():
                self.class_meaning = self.text.meaning([f"{CAPTION} {settings.class_word}"], {})

    def _first_rows(self) -> dict[str, Tensor]:
        s = self.settings
        if not s.initial_embedding:
            return {encoder: row.repeat(s.words, 1) for encoder, row in self.text.row(s.initial_word).items()}
        found = subject_files.read_rows(s.initial_embedding)
        rare = self.text.row(s.initial_word)
        wrong = [e for e, row in found.items() if e not in rare or row.shape[1] != rare[e].shape[1]]
        if wrong:
            raise ValueError(f"the embedding '{s.initial_embedding}' is for other text encoders than this model's.")
        count = len(next(iter(found.values())))
        return {encoder: found.get(encoder, row.repeat(count, 1)) for encoder, row in rare.items()}

    def rows_of(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The rows (n, C) among trained weights, by encoder."""
        return {n.removeprefix("rows/"): p.detach() for n, p in parameters.items() if n.startswith("rows/")}

    def lora(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The LoRA of trained weights, in the base's own precision."""
        kind = self.base.model_dtype()
        tensors = self.network.lora({n: p for n, p in parameters.items() if not n.startswith("rows/")})
        return {key: value.to(kind if kind in (torch.float16, torch.bfloat16) else torch.float32)
                for key, value in tensors.items()}

    def task(self, notes: Mapping[str, object]) -> Task:
        """What the training loop needs."""
        return Task(self.parameters, self.losses, self.device, self.network.autocast, notes=notes)

    def losses(self, latents: Tensor, noise: Tensor, level: Tensor, pictures: Sequence[variants.Variant]) -> Tensor:
        """The masked diffusion loss plus the weighted semantic distance, (B,) (arXiv 2405.17532, equation 8)."""
        class_word, rows = self.settings.class_word, self.rows()
        with torch.autocast(self.device.type, enabled=False):  # as the host encodes prompts
            texts = [self.text.conditioning(caption(class_word, p.prefix), rows) for p in pictures]
            distance = self.semantic_distance(rows)
        conditions = self.network.conditions(texts, latents)
        loss = self.network.diffusion_loss(lambda x, sigma: self.network.predict(x, sigma, **conditions),
                                           self.settings.min_snr)
        mask = torch.stack([picture.mask() for picture in pictures]).to(self.device)
        mask = mask.unflatten(1, [1] * (latents.ndim - 3))  # a video model's latents have a dimension of frames
        return (loss(self.network.latent_format.process_in(latents), noise, level, mask)
                + self.settings.semantic_weight * distance)

    @property
    def latent_format(self):
        """The host's, of the base."""
        return self.network.latent_format

    def caption(self, request: str = "") -> str:
        """The subject's caption with what is asked of it."""
        return caption(self.settings.class_word, request=request)

    def rows(self) -> dict[str, list[Tensor]]:
        """The new word's rows for ``TrainableText``."""
        return {name.removeprefix("rows/"): [p] for name, p in self.parameters.items() if name.startswith("rows/")}

    def semantic_distance(self, rows: Mapping[str, list[Tensor]]) -> Tensor:
        """L_sp of the new word; not computed at weight 0."""
        if not self.settings.semantic_weight:
            return torch.zeros((), device=self.device)
        new = self.text.meaning([f"{CAPTION} <0> {self.settings.class_word}"], rows)
        return semantic_preservation(new, self.class_meaning)


def caption(class_word: str, prefix: str = "", request: str = "") -> str:
    """A caption of the subject, ``<0>``; what the variants say of themselves stands before it."""
    return f"{prefix}{CAPTION} <0> {class_word} {request}".strip()


def text_for(clip, settings: SubjectSettings, device: torch.device) -> TrainableText | FixedPrompts:
    """The text encoder of a run; one that is no CLIP is frozen, and the rare word stands for the subject.

    Raises:
        ValueError: settings that ask of such an encoder what it cannot learn.
    """
    if set(clip.tokenize("")) in SUPPORTED:
        return TrainableText(clip, device)
    if settings.method != "LoRA" or settings.semantic_weight or settings.initial_embedding:
        raise ValueError(f"new words can be taught to the CLIP text encoders of SD1.5, SD2 and SDXL, but this one "
                         f"consists of {', '.join(sorted(clip.tokenize('')))}; choose the method LoRA, semantic_weight "
                         f"0 and no initial_embedding, and '{settings.subject(False)}' becomes the subject's name.")
    texts = [caption(settings.class_word, prefix) for prefix in variants.PREFIXES]
    return FixedPrompts(clip, settings.initial_word,
                        texts + [caption(settings.class_word, request=request) for request in settings.prompts()])


def check_class_word(text: TrainableText | FixedPrompts, word: str) -> None:
    """Refuse what is not one token, or is more than a word to the host: "(dog:1.2)", "embedding:rex" (ValueError)."""
    if not re.fullmatch(r"[\w' -]+", word):
        raise ValueError(f"the class word is {word!r}, of which a prompt reads some signs as weights or names; take "
                         "one common word, such as dog, cat, cup, toy or face.")
    for ids in text.ids(word).values():
        if len(ids) != 1:
            raise ValueError(f"the class word '{word}' has {len(ids)} tokens; take one common word that the text "
                             "encoder knows as a whole, such as dog, cat, cup, toy or face.")
