"""A subject's run: it learns, goes on to the bit, and its files do in stock nodes what the trained MODEL does."""

import os
import stat

import comfy.sample
import comfy.sd
import comfy.utils
import folder_paths
import nodes as stock_nodes
import numpy as np
import pytest
import torch
from PIL import Image

from gcfg_pack.gcfg.host.training.models.captioned import with_lora
from gcfg_pack.gcfg.host.training.subjects import files as subject_files
from gcfg_pack.gcfg.host.training.subjects import train as subject
from gcfg_pack.gcfg.host.training.subjects.learner import SubjectLearner
from gcfg_pack.gcfg.nulltext.formats import checkpoint
from gcfg_pack.gcfg.training.data.variants import Subject
from gcfg_pack.gcfg.training.losses.semantic import semantic_preservation
from gcfg_pack.gcfg.training.memory import Plan
from gcfg_pack.gcfg.training.run import state
from gcfg_pack.gcfg.training.run.task import Watch
from gcfg_pack.gcfg.training.settings import SettingsError
from gcfg_pack.gcfg.training.subject_settings import SubjectSettings
from gcfg_pack.nodes.subjects import GCFGImportSubject
from harness.models.concepts import same, weights_of
from harness.models.families import FAMILIES
from harness.models.text import clip
from harness.training import Clip, Vae, draw_pictures

QUICK = {"run_name": "joe", "class_word": "dog", "target_steps": 4, "learning_rate": 1e-2, "preview_every": 0,
         "save_every": 2}


class Stop(Watch):
    def __init__(self, step):
        self.step, self.at, self.shown = step, 0, []

    def interrupted(self):
        return self.at >= self.step

    def progress(self, step, steps, loss):
        self.at = step

    def show(self, step, steps, picture):
        self.shown.append((step, picture.size))


@pytest.fixture(scope="module")
def encoders():
    """CLIPs of both kinds; nothing may change them."""
    with torch.inference_mode():
        return {kind: clip(kind, seed=1) for kind in ("sd15", "sdxl")}


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """The host's folders of embeddings and LoRAs, empty."""
    places = {name: tmp_path / name for name in ("embeddings", "loras")}
    for name, place in places.items():
        place.mkdir()
        monkeypatch.setitem(folder_paths.folder_names_and_paths, name,
                            ([str(place)], folder_paths.folder_names_and_paths[name][1]))
    return places


@pytest.fixture
def images(tmp_path):
    folder = draw_pictures(tmp_path / "pictures", 4)
    return subject.prepare(Subject(str(folder), "", 64, count=8), Vae(), tmp_path / "latents")


@pytest.fixture
def train(images, folders, tmp_path, encoders):
    """train(base, watch, **settings), within inference mode as the host runs nodes."""
    def run(base, watch=None, name="a", kind="sd15", **changes):
        stock = encoders[kind].clone()
        for part in vars(stock.tokenizer).values():
            if hasattr(part, "embedding_directory"):
                part.embedding_directory = str(folders["embeddings"])
        settings = SubjectSettings(**QUICK | {"output": str(tmp_path / name)} | changes)
        with torch.inference_mode():
            return subject.train(base, stock, images, settings, watch or Watch()), stock
    return run


def sample(model, positive, negative):
    with torch.inference_mode():
        latent = torch.zeros(1, 4, 8, 8)
        noise = comfy.sample.prepare_noise(latent, 3)
        return comfy.sample.sample(model, noise, 4, 5.0, "euler", "normal", positive, negative, latent,
                                   disable_pbar=True, seed=3)


def stock_graph(base, stock, folders, prompt, lora="joe.safetensors"):
    """What CLIP Text Encode and Load LoRA of the host make of the files."""
    with torch.inference_mode():
        positive = stock_nodes.CLIPTextEncode().encode(stock, prompt)[0]
        negative = stock_nodes.CLIPTextEncode().encode(stock, "")[0]
        model = base
        if (folders["loras"] / lora).exists():
            model = stock_nodes.LoraLoaderModelOnly().load_lora_model_only(base, lora, 1.0)[0]
        return model, positive, negative


@pytest.mark.parametrize("family, method", [("sd15", "K and V"), ("sdxl", "K and V"), ("sd15", "LoRA"),
                                            ("sd15", "rows")])
def test_stock_nodes_give_the_latents_of_the_trained_model(tiny, train, folders, family, method):
    base = getattr(tiny, family)(seed=1)
    before = {key: value.clone() for key, value in weights_of(base).items()}
    made, stock = train(base, kind=family, method=method)
    assert made.prompt == "embedding:joe dog" and torch.isfinite(made.history[:, 1]).all()
    model, positive, negative = stock_graph(base, stock, folders, f"a photo of a {made.prompt} on a beach")
    theirs, ours = sample(model, positive, negative), sample(made.model, positive, negative)
    plain = sample(base, positive, negative)
    assert same(weights_of(base), before)
    assert (ours - theirs).abs().max() / theirs.std() < 1e-5
    if method != "rows":
        assert (theirs - plain).abs().max() / theirs.std() > 1e-2
    tensors, metadata = checkpoint.read(folders["embeddings"] / "joe.safetensors")
    assert set(tensors) == {"clip_l"} | ({"clip_g"} if family == "sdxl" else set())
    assert "subject: 4 steps on 4 pictures" in metadata["gcfg.made_by"]
    umask = os.umask(0)
    os.umask(umask)
    written = [path for folder in folders.values() for path in folder.iterdir()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in written} == {0o666 & ~umask}


@pytest.mark.parametrize("method", ["K and V", "LoRA", "rows"])
def test_the_word_and_the_weights_learn(tiny, images, encoders, method):
    """On one batch at fixed noise, so that nothing but learning lowers the loss."""
    settings = SubjectSettings(**QUICK | {"method": method, "semantic_weight": 0.0})
    with torch.inference_mode(False), torch.enable_grad():
        base = tiny.sd15(seed=1, prediction="v")
        learner = SubjectLearner(base, encoders["sd15"], settings, Plan(), torch.device("cpu"))
        shown = images.found[:2]
        latents = torch.stack([variant.load(False) for variant in shown])
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
        optimizer, losses = torch.optim.AdamW(learner.parameters.values(), 1e-2), []
        for _ in range(8):
            loss = learner.losses(latents, noise, torch.tensor([0.3, 0.7]), shown).mean()
            losses.append(loss.item())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert all(parameter.grad is not None for parameter in learner.parameters.values())
    assert losses[-1] < {"LoRA": 0.9, "K and V": 0.99, "rows": 0.998}[method] * losses[0]  # one word moves little


def test_semantic_weight_keeps_the_word_near_its_class(tiny, train, monkeypatch):
    distances = {}
    original = SubjectLearner.rows_of

    def spied(learner, trained):
        with torch.no_grad():
            rows = {name: [value] for name, value in original(learner, trained).items()}
            new = learner.text.meaning(["a photo of a <0> dog"], rows)
            distance = semantic_preservation(new, learner.text.meaning(["a photo of a dog"], {}))
            distances[learner.settings.semantic_weight] = float(distance)
        return original(learner, trained)
    monkeypatch.setattr(SubjectLearner, "rows_of", spied)
    base = tiny.sd15(seed=1)
    for weight in (0.0, 5.0):
        train(base, name=str(weight), method="rows", run_name=f"joe{int(weight)}", semantic_weight=weight,
              target_steps=15, learning_rate=2e-2)
    assert distances[5.0] < 0.7 * distances[0.0]


@pytest.mark.parametrize("method", ["K and V", "LoRA"])
def test_interrupted_run_goes_on_to_the_bit(base, train, folders, method):
    whole, _ = train(base, method=method, name="whole")
    written = checkpoint.read(folders["loras"] / "joe.safetensors")[0]
    for place in folders.values():
        (place / "joe.safetensors").unlink()
    stopped, _ = train(base, Stop(3), method=method, name="parts")
    assert stopped.step == 3
    last, _ = train(base, method=method, name="parts")  # which replaces its own files
    assert last.step == 4
    ours, theirs = (state.latest(run.folder.states).tensors() for run in (whole, last))
    assert all(torch.equal(ours[k].nan_to_num(), theirs[k].nan_to_num()) for k in ours)
    assert same(checkpoint.read(folders["loras"] / "joe.safetensors")[0], written)


def test_previews(base, train):
    watch = Stop(99)
    train(base, watch, target_steps=2, preview_every=2, preview_steps=2, preview_prompt="wearing a hat")
    assert watch.shown == [(2, (128, 96))]


class Prompts(Clip):
    """A text encoder that is no CLIP, as Wan's."""

    def tokenize(self, text):
        return {"umt5xxl": text}

    def encode_from_tokens_scheduled(self, tokens):
        return super().encode_from_tokens_scheduled(tokens["umt5xxl"])


class OneFrame(Vae):
    """An autoencoder of videos; a picture is one frame."""

    def encode(self, pixels):
        return super().encode(pixels).repeat(1, 4, 1, 1)[:, :, None]

    def decode(self, latents):
        return super().decode(latents[:, :, 0])[:, None]


def test_a_lora_of_a_subject_on_a_video_model(folders, tmp_path):
    """Wan's class: no word is learned, the rare one names the subject; the stock loader gives the trained MODEL."""
    family, clip_of = FAMILIES["Wan 2.1 text to video"], Prompts(48)
    base, watch = family.model(1), Stop(99)
    pictures = subject.prepare(Subject(str(draw_pictures(tmp_path / "pictures", 3)), "", 64, count=6), OneFrame(),
                               tmp_path / "latents")
    values = QUICK | {"output": str(tmp_path / "a"), "method": "LoRA", "semantic_weight": 0.0, "preview_every": 4,
                      "preview_steps": 2, "preview_prompt": "on a beach"}
    with torch.inference_mode():
        with pytest.raises(ValueError, match="consists of umt5xxl; choose the method LoRA.*'ktn dog' becomes"):
            subject.train(base, clip_of, pictures, SubjectSettings(**values | {"semantic_weight": 0.25}), watch)
        made = subject.train(base, clip_of, pictures, SubjectSettings(**values), watch)
        assert made.prompt == "ktn dog" and watch.shown[0][0] == 4 and torch.isfinite(made.history[:, 1]).all()
        assert not list(folders["embeddings"].iterdir())
        stock = stock_nodes.LoraLoaderModelOnly().load_lora_model_only(base, "joe.safetensors", 1.0)[0]
        latent, text = family.latents()["samples"], (family.conditioning(1), family.conditioning(2))
        theirs, ours, plain = (comfy.sample.sample(
            model, comfy.sample.prepare_noise(latent, 3), 2, 3.0, "euler", "simple", *text, latent, disable_pbar=True,
            seed=3) for model in (stock, made.model, base))
    assert (ours - theirs).abs().max() / theirs.std() < 1e-5 < 1e-3 < (theirs - plain).abs().max() / theirs.std()


def test_starts_from_an_embedding(base, train, folders):
    rows = torch.randn(2, 768) * 0.1
    checkpoint.write(folders["embeddings"] / "tuned.safetensors", {"clip_l": rows}, {})
    train(base, method="rows", target_steps=1, learning_rate=1e-6, initial_embedding="tuned")
    found = checkpoint.read(folders["embeddings"] / "joe.safetensors")[0]["clip_l"]
    assert torch.allclose(found, rows, atol=1e-5)


@pytest.mark.parametrize("changes, words", [
    ({"class_word": "headphone stand"}, "has 2 tokens"),
    ({"class_word": "(dog:1.2)"}, "reads some signs as weights"),
    ({"class_word": "embedding:rex"}, "or names; take one common word"),
    ({"run_name": "my dog"}, "letters, digits and _ only"),
    ({"run_name": "<new1>"}, "letters, digits and _ only"), ({"class_word": " "}, "class_word is empty"),
    ({"initial_embedding": "none"}, "there is no embedding 'none'")])
def test_bad_input_is_a_sentence(base, train, changes, words):
    with pytest.raises((ValueError, SettingsError), match=words):
        train(base, **changes)


def test_nothing_is_overwritten(base, train, folders):
    (folders["embeddings"] / "joe.pt").write_bytes(b"precious")
    with pytest.raises(ValueError, match="a file 'joe.pt' .* already; nothing is overwritten"):
        train(base)
    assert (folders["embeddings"] / "joe.pt").read_bytes() == b"precious"
    (folders["embeddings"] / "joe.pt").unlink()
    train(base, name="first", target_steps=1)
    with pytest.raises(ValueError, match="'joe.safetensors' .* already"):
        train(base, name="second", target_steps=1)


def test_a_moved_run_writes_its_own_files_again_and_names_no_folder_in_them(base, train, folders, tmp_path):
    train(base, name="here", target_steps=1)
    (tmp_path / "here").rename(tmp_path / "there")
    train(base, name="there", target_steps=2)
    for place in folders.values():
        _, metadata = checkpoint.read(place / "joe.safetensors")
        assert metadata["gcfg.run"] and not any(str(tmp_path) in value for value in metadata.values())


def test_one_picture_and_masks_that_do_not_fit(tmp_path):
    folder, masks = draw_pictures(tmp_path / "few", 1), tmp_path / "masks"
    with pytest.raises(ValueError, match="holds 1 picture, but a subject needs 2"):
        subject.prepare(Subject(str(folder), "", 64), Vae(), tmp_path / "latents")
    draw_pictures(folder, 2)
    masks.mkdir()
    with pytest.raises(ValueError, match="there is no mask for picture_00.png"):
        subject.prepare(Subject(str(folder), str(masks), 64), Vae(), tmp_path / "latents")
    Image.fromarray(np.full((32, 32), 255, np.uint8)).save(masks / "picture_00.png")
    with pytest.raises(ValueError, match="is 32 x 32, but its picture is 64 x 64"):
        subject.prepare(Subject(str(folder), str(masks), 64), Vae(), tmp_path / "latents")


def test_masks_count(tmp_path):
    folder, masks = draw_pictures(tmp_path / "few", 2), tmp_path / "masks"
    masks.mkdir()
    half = np.zeros((64, 64), np.uint8)
    half[:, :32] = 255
    for k in range(2):
        Image.fromarray(half).save(masks / f"picture_0{k}.png")
    found = subject.prepare(Subject(str(folder), str(masks), 64, augment=False, flip=False, count=2), Vae(),
                            tmp_path / "latents").found
    assert torch.equal(found[0].mask(), torch.cat([torch.ones(1, 8, 4), torch.zeros(1, 8, 4)], dim=2))


def test_official_files_import_to_the_same_model(tiny, folders, tmp_path):
    base = tiny.sd15(seed=1)
    table = comfy.utils.unet_to_diffusers(base.model.model_config.unet_config)
    names = {ours: theirs for theirs, ours in table.items()}
    plain = weights_of(base)
    official, expected = {}, {}
    for name, weight in plain.items():
        part = name.split(".")[-2]
        if ".attn2." in name and part in ("to_k", "to_v"):
            change = 0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(len(official)))
            key = f"{names[name].removesuffix(f'.{part}.weight')}.processor.{part}_custom_diffusion.weight"
            official[key], expected[f"diffusion_model.{name.removesuffix('.weight')}.diff"] = weight + change, change
    found = subject_files.from_official(official | {"<new1>": torch.zeros(768)}, base)
    assert found.keys() == expected.keys() and official
    assert all((found[key] - expected[key]).abs().max() < 1e-6 for key in found)
    official_folder, row = tmp_path / "official", torch.randn(768)
    official_folder.mkdir()
    torch.save(official, official_folder / "pytorch_custom_diffusion_weights.bin")
    torch.save({"<new1>": row}, official_folder / "<new1>.bin")
    model, prompt = GCFGImportSubject.execute(base, str(official_folder), "zog").args
    assert prompt == "embedding:zog"
    assert torch.equal(checkpoint.read(folders["embeddings"] / "zog.safetensors")[0]["clip_l"], row[None])
    text = tiny.conditioning(1), tiny.conditioning(2)
    assert torch.equal(sample(model, *text), sample(with_lora(base, found), *text))
    GCFGImportSubject.execute(base, str(official_folder), "zog")  # the same files again
    (folders["embeddings"] / "mine.pt").write_bytes(b"precious")
    with pytest.raises(ValueError, match="a file 'mine.pt' .* already; nothing is overwritten"):
        GCFGImportSubject.execute(base, str(official_folder), "mine")
    assert {path.name for place in folders.values() for path in place.iterdir()} == {"mine.pt", "zog.safetensors"}
    with pytest.raises(ValueError, match="letters, digits and _ only"):
        GCFGImportSubject.execute(base, str(official_folder), "<new1>")
    with pytest.raises(ValueError, match="holds no pytorch_custom_diffusion_weights"):
        GCFGImportSubject.execute(base, str(tmp_path), "other")
    with pytest.raises(checkpoint.CheckpointError, match="is no key or value"):
        subject_files.from_official({"down_blocks.0.weight": torch.zeros(1)}, base)
