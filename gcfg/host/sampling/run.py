"""One sampling run of a recipe: its lanes, loaded and prepared the host's way, and handed back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack

from comfy.model_patcher import ModelPatcher
from comfy.sampler_helpers import cleanup_models, get_additional_models
from comfy.samplers import CFGGuider
from torch import Tensor

from ...guidance import BASE, UNCONDITIONAL, Momentum, Prediction, Progress, Reuse
from ...rows.network import RowwiseNetwork
from .. import KEY
from ..models import is_flow, replaces_methods
from . import tracing
from .batch.masks import spatial_mask
from .chain import POSITIVE, Spec
from .lanes.conditionings import Conds, process
from .lanes.hooks import register_together
from .lanes.lane import needs_pairs
from .lanes.table import Lanes


class Run:
    """A recipe during one call of a guider's ``sample``; a context manager, entered before the models load."""

    def __init__(self, guider: CFGGuider, spec: Spec):
        self.guider, self.spec = guider, spec
        self.lanes = Lanes(guider, spec)
        self.recipe = self.lanes.recipe
        self.networks: dict[ModelPatcher, dict[object, RowwiseNetwork]] = {}  # by owner, by inner model
        self.exits = ExitStack()
        if self.lanes.only_unconditional or getattr(guider, "cfg", None) == 0.0:
            self.recipe.check_balance()

    def __deepcopy__(self, memo) -> Run:
        return self

    def is_unguided(self, sigma: float, options: dict) -> bool:
        """True if the sampler's own guidance has scale 0 at this noise level, and nobody else looks at its positive."""
        foreign = options["sampler_post_cfg_function"][1:] + options.get("sampler_pre_cfg_function", [])
        if foreign or "sampler_cfg_function" in options:
            return False
        scale_at = getattr(self.guider, "scale_at", None)
        plain = type(self.guider).predict_noise is CFGGuider.predict_noise
        return (scale_at(sigma, self.progress) if scale_at else self.guider.cfg if plain else None) == 0.0

    # --- before the models load ---------------------------------------------------------------------------------

    def __enter__(self) -> Run:
        try:
            self._prepare()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _prepare(self) -> None:
        """Options and hooks of every lane; the run itself, where its wrappers find it."""
        self.guider.model_options[KEY] = self
        self.lanes[BASE].in_pairs = needs_pairs(self.guider.model_options, self.lanes.base)
        for name, lane in self.lanes.items():
            if lane.leader == name != BASE:
                lane.prepare(self.guider.model_options)
        for owner in self.lanes.owners:
            self._register_hooks(owner)

    def _register_hooks(self, owner: ModelPatcher) -> None:
        """Register the hooks of all conditionings that run on one module, together, with its MODEL."""
        lanes = [(lane.conds, self.guider.model_options if lane.leader == BASE else self.lanes[lane.leader].options)
                 for lane in self.lanes.values() if lane.owner is owner]
        register_together(owner, lanes, list(self.guider.conds.values()) if owner is self.lanes.base else [])

    def to_load(self, conds: dict[str, Conds]) -> dict[str, Conds]:
        """The host's conditionings with the recipe's and its MODELs, in the form in which the host loads models."""
        ours = {f"{KEY} {name} {kind}": c for name, lane in self.lanes.items() if lane.owner is self.lanes.base
                for kind, c in lane.conds.items()}
        return {**conds, **ours, KEY: [{"additional_models": self._models()}]}

    def _models(self) -> list[ModelPatcher]:
        """The MODELs beside the base with what they bring along. The host must not spread them over its devices."""
        lanes = [lane for lane in self.lanes.values() if lane.owner is not self.lanes.base]
        return [*(m for owner in self.lanes.owners[1:] for m in (owner, *owner.get_nested_additional_models())),
                *(m for lane in lanes for m in get_additional_models(lane.conds, lane.owner.model_dtype())[0])]

    @property
    def batch_factor(self) -> int:
        """By how much the largest batch of predictions exceeds the two that the host reckons with."""
        used = {p for g in self.recipe.guidances for p in g.uses}
        own = {Prediction(BASE, POSITIVE), Prediction(BASE, UNCONDITIONAL)}
        sizes = Counter(self.lanes.leader(p) for p in used | own)
        return (max(sizes.values()) + 1) // 2

    def within_wrappers(self, call: Callable) -> Callable:
        """A call of the whole run, within the wrappers of every lane; the base's are the host's business."""
        for leader in self.lanes.leaders:
            if leader != BASE:
                users = [g.label for g in self.recipe.guidances if any(self.lanes.leader(p) == leader for p in g.uses)]
                call = self.lanes[leader].within_wrappers(call, ", ".join(users))
        return call

    # --- models are loaded, sampling starts ---------------------------------------------------------------------

    def start(self, sigmas: Tensor, noise: Tensor, latent_image: Tensor, denoise_mask: Tensor | None,
              seed: int | None) -> None:
        """Prepare the other models, the conditionings and the masks for a latent of the shape of ``noise``."""
        sampling = self.guider.inner_model.model_sampling
        self.progress = Progress(sampling.percent_to_sigma, float(sampling.sigma_max))
        self.sigmas = [float(sigma) for sigma in sigmas]
        self.from_noise = self.sigmas[0] > 0.99 * float(sampling.sigma_max)
        shapes = getattr(self.guider.inner_model, "latent_shapes", None)
        tracing.begin(self)
        self.begin(noise)
        for owner in self.lanes.owners:
            if owner is not self.lanes.base:
                owner.pre_run()
                owner.model.latent_shapes = shapes
            self._apply_to_rows(owner)
        for name, lane in self.lanes.items():
            if lane.guider is not None:
                lane.options["transformer_options"]["sample_sigmas"] = sigmas
            network = self.networks[lane.owner][lane.owner.model]
            with network.applied([None if lane.adapter is None else name], whole=False):  # some refine the text here
                lane.pairs = {pair: process(conds, self.lanes.inner(lane), noise, lane.owner.load_device, latent_image,
                                            denoise_mask, seed, shapes) for pair, conds in lane.pairs.items()}

    def begin(self, x: Tensor) -> None:
        """Begin what depends on the size of the latent: masks, momentum, reuse. A few samplers change it on the way."""
        performance = self.spec.performance
        self.shape, self.momentum = x.shape, Momentum()
        self.reuse = Reuse(performance, self.sigmas, is_flow(self.lanes.base)) if performance.reuses else None
        streams = getattr(self.guider.inner_model, "latent_shapes", None) or [x.shape]
        self.masks = {name: spatial_mask(mask, x.shape, streams).to(x.device) for name, mask in self.spec.masks.items()}

    def _apply_to_rows(self, owner: ModelPatcher) -> None:
        """Let an owner's network apply the adapters of its lanes to rows, on every device that the host runs it on."""
        clones = self.guider.model_options.get("multigpu_clones", {}) if owner is self.lanes.base else {}
        for patcher in {owner: None, **dict.fromkeys(clones.values())}:
            dtype = patcher.model.manual_cast_dtype or patcher.model.get_dtype()
            adapters = {name: lane.adapter.to(patcher.load_device, dtype) for name, lane in self.lanes.items()
                        if lane.owner is owner and lane.adapter is not None}
            network = RowwiseNetwork(patcher.model.diffusion_model, adapters, mixes=replaces_methods(owner))
            self.networks.setdefault(owner, {})[patcher.model] = self.exits.enter_context(network)

    # --- afterwards, whatever happened ---------------------------------------------------------------------------

    def __exit__(self, *_) -> None:
        self.exits.close()
        cleanup_models({f"{name} {kind}": c for name, lane in self.lanes.items() for kind, c in lane.conds.items()}, [])
        for owner in self.lanes.owners[1:]:
            owner.cleanup()
            owner.restore_hook_patches()
        self.guider.model_options.pop(KEY, None)
        self.lanes.clear()
