"""AnimateDiff-Evolved with a motion module, on a UNet of true widths: frames that see each other in every block.

A personalized video is the subject's weights and word as a guidance, on the MODEL with the motion module.
"""

import comfy.samplers
import comfy.sd
import folder_paths
import pytest

from gcfg_pack.gcfg.host.sampling.chain import Link
from gcfg_pack.gcfg.host.sampling.patch import apply
from harness.models import files
from harness.models.weights import draw
from harness.sampling import relative, sampled, stock, through_guider

PACK, CFG = "ComfyUI-AnimateDiff-Evolved", 2.5
V3, V1 = 32, 24  # the longest clip says which version a file is


@pytest.fixture(scope="module")
def motion_file(packs, tmp_path_factory):
    """Writes the motion module of a version; its name."""
    from harness.models import motion

    folder, written = tmp_path_factory.mktemp("motion"), {}
    if "animatediff_models" in folder_paths.folder_names_and_paths:
        folder_paths.add_model_folder_path("animatediff_models", str(folder))

    def name(version, picture=False):
        key = version, picture
        if key not in written:
            written[key] = f"motion_{version}{'_picture' if picture else ''}.ckpt"
            motion.write_motion_module(folder / written[key], version, picture=picture)
        return written[key]
    return name


@pytest.fixture
def animated(node, motion_file):
    """Gives a MODEL a motion module, as the pack's own nodes do."""
    def to(model, version=V3, **options):
        loaded, = node(PACK, "ADE_LoadAnimateDiffModel", model_name=motion_file(version))
        applied, = node(PACK, "ADE_ApplyAnimateDiffModelSimple", motion_model=loaded)
        return node(PACK, "ADE_UseEvolvedSampling", model=model, m_models=applied, **options)[0]
    return to


@pytest.fixture
def from_picture(node, motion_file):
    """Gives a MODEL a motion module that begins with a picture."""
    def to(model, seed=1):
        loaded, = node(PACK, "ADE_LoadAnimateDiffModel", model_name=motion_file(V3, picture=True))
        applied, = node(PACK, "ADE_ApplyAnimateDiffModelWithPIA", motion_model=loaded,
                        vae=comfy.sd.VAE(sd=files.autoencoder(0)),
                        image=20.0 * draw("picture", (1, 64, 64, 3), seed))
        return node(PACK, "ADE_UseEvolvedSampling", model=model, m_models=applied)[0]
    return to


@pytest.fixture
def one(tiny):
    """One step over three frames; with cfg 1 the prediction for the positive, with 0 that for the negative."""
    def step(model, positive, negative=None, cfg=1.0, sample=stock, **options):
        options = options if sample is through_guider else {"cfg": cfg}
        negative, latent = negative or tiny.conditioning(2), tiny.latent(batch=3, seed=9)
        return sample(model, positive, negative, latent, steps=1, **options)
    return step


@pytest.fixture
def keys_and_values(tiny):
    """A LoRA file as Train Subject writes it: keys and values of the attention to the text."""
    def of(model):
        return {k: v for k, v in tiny.lora(model, only="attn2", strength=3.0).items() if "_to_k" in k or "_to_v" in k}
    return of


def test_motion_on_the_base(tiny, wide, concept, prompts, animated, one, close):
    """A concept without a motion module predicts each frame for itself."""
    positive, negative = prompts
    style = tiny.conditioning(3)
    links = [Link(model=concept, scale=1.5), Link(conditioning=style, scale=0.5)]
    theirs = animated(wide)
    alone = one(theirs, positive, negative, CFG)
    assert relative(alone, one(wide, positive, negative, CFG)) > 1e-2, "the motion module does nothing here"
    other = comfy.samplers.CFGGuider(concept)  # at the noise level of the base, whose schedule the pack changes
    other.set_conds(negative, negative)
    sigmas = comfy.samplers.KSampler(theirs, 1, "cpu", "euler", "karras", 1.0).sigmas
    dc = sampled(other, tiny.latent(3, seed=9), sigmas)
    d0, ds = one(theirs, positive, negative, 0.0), one(theirs, style)
    expected = alone + 1.5 * (dc - d0) + 0.5 * (ds - d0)
    for where, model in (("before", apply(theirs, links)), ("after", animated(apply(wide, links)))):
        close(PACK, "motion module v3", f"the base, {where} Apply GCFG",
              relative(one(model, positive, negative, CFG), expected))
    guided = one(theirs, positive, negative, sample=through_guider, links=links, scale=CFG)
    close(PACK, "motion module v3", "the base, GCFG Guider", relative(guided, expected))


@pytest.mark.parametrize(("version", "windows"), [(V3, False), (V1, True)], ids=["v3", "v1 in windows"])
def test_personalized_video(tiny, wide, prompts, keys_and_values, animated, node, one, close, version, windows):
    """The subject's keys and values and its word, measured from the base under the class: one copy of the weights."""
    positive, negative = prompts
    word, options = tiny.conditioning(3), {}
    if windows:
        options["context_options"], = node(PACK, "ADE_StandardStaticContextOptions", context_length=2,
                                           context_overlap=1)
    theirs = animated(wide, version, **options)
    subject, _ = comfy.sd.load_lora_for_models(theirs, None, keys_and_values(wide), 1.0, 0.0)
    ds, dp = one(subject, word), one(theirs, positive)
    assert relative(ds, one(theirs, word)) > 1e-2, "the subject's weights do nothing here"
    links = [Link(model=subject, conditioning=word, scale=4.0, reference="custom", reference_conditioning=positive)]
    result = one(apply(theirs, links), positive, negative, CFG)
    close(PACK, f"motion module {'v1, windows of 2 of 3 frames' if windows else 'v3'}", "the base and a subject on it",
          relative(result, one(theirs, positive, negative, CFG) + 4.0 * (ds - dp)))


def test_a_video_from_a_picture(tiny, wide, prompts, keys_and_values, from_picture, one, close, refused):
    """The pack hangs the picture on the sampler's two conditionings in every step: all rows on its network get it.

    They lacked it: *expected input to have 9 channels, but got 4*.
    """
    positive, negative = prompts
    style, theirs = tiny.conditioning(3), from_picture(wide)
    subject, _ = comfy.sd.load_lora_for_models(theirs, None, keys_and_values(wide), 1.0, 0.0)
    d0, ds, dl = one(theirs, positive, negative, 0.0), one(theirs, style), one(subject, style)
    assert relative(one(from_picture(wide, seed=2), style), ds) > 1e-2, "the picture does nothing here"
    links = [Link(conditioning=style, scale=0.5), Link(model=subject, conditioning=style, scale=1.5)]
    result = one(apply(theirs, links), positive, negative, CFG)
    close(PACK, "motion module of PIA", "the base and a subject on it",
          relative(result, one(theirs, positive, negative, CFG) + 0.5 * (ds - d0) + 1.5 * (dl - d0)))
    first = "diffusion_model.input_blocks.0.0"
    file = {f"{first}.lora_up.weight": draw("up", (320, 2, 1, 1), 1),
            f"{first}.lora_down.weight": draw("down", (2, 4, 3, 3), 1)}
    subject, _ = comfy.sd.load_lora_for_models(theirs, None, file, 1.0, 0.0)
    with pytest.raises(RuntimeError, match=r"reads the weights of 'input_blocks.0.0' without calling the layer"):
        one(apply(theirs, [Link(model=subject, conditioning=style)]), positive, negative, CFG)
    refused(PACK, "motion module of PIA", "a LoRA of the base's first convolution")


def test_a_subject_with_a_motion_module_of_its_own_is_refused(wide, prompts, keys_and_values, animated, one, refused):
    """LoRA first, then the motion module on both: two injections into one network."""
    positive, negative = prompts
    subject, _ = comfy.sd.load_lora_for_models(wide, None, keys_and_values(wide), 1.0, 0.0)
    links = [Link(model=animated(subject), scale=4.0, name="Subject")]
    with pytest.raises(ValueError, match="apply AnimateDiff before the LoRA"):
        one(apply(animated(wide), links), positive, negative, CFG)
    refused(PACK, "motion module v3", "base and subject, each its own")
