"""Settings from TOML, their errors, and the memory presets."""

import pytest

from gcfg.training import settings_file
from gcfg.training.memory import GIB, Plan, plan
from gcfg.training.settings import Settings, SettingsError


def test_the_default_is_the_papers_recipe():
    s = Settings()
    assert (s.method, s.learning_rate, s.batch, s.gradient_clip, s.weight_decay) == ("full", 1e-5, 32, 1.0, 1e-2)
    assert s.ema and s.flip
    assert (s.min_snr, s.noise_offset, s.schedule, s.warm_up) == (0.0, 0.0, "constant", 0)


def test_toml_there_and_back(tmp_path):
    before = Settings(folder='C:\\pictures "of" Jö', learning_rate=3e-5, rank=4, method="LoRA", flip=False)
    (tmp_path / "run.toml").write_text(before.to_toml(), encoding="utf-8")
    assert settings_file.read(tmp_path / "run.toml") == before


@pytest.mark.parametrize("text, words", [
    ("learning_rat = 1e-5", "did you mean 'learning_rate'"),
    ("batch = 2.5", "batch must be of type int"),
    ("flip = 1", "flip must be of type bool"),
    ("method = 'lora'", "choose one of full, LoRA"),
    ("batch = 0", "at least 1"),
    ("learning_rate = -1.0", "from 0"),
    ("learning_rate = nan", "from 0"),
    ("resolution = 500", "multiple of 64"),
    ("run_name = '../up'", "plain name"),
    ("batch = ", "no TOML file"),
])
def test_errors_name_the_setting(tmp_path, text, words):
    (tmp_path / "run.toml").write_text(text)
    with pytest.raises(SettingsError, match=words):
        settings_file.read(tmp_path / "run.toml")


def test_missing_file(tmp_path):
    with pytest.raises(SettingsError, match="could not be read"):
        settings_file.read(tmp_path / "none.toml")


def test_what_may_change_when_a_run_goes_on():
    before = Settings()
    assert Settings(target_steps=9000, learning_rate=1e-6, memory="8 GB").changed(before) == []
    assert Settings(rank=8, seed=1).changed(before) == ["rank was 16, now 8", "seed was 0, now 1"]


def test_plans():
    assert plan(Settings()) == Plan()
    assert plan(Settings(), 80 * GIB).micro_batch == 8
    assert plan(Settings(), 16 * GIB) == plan(Settings(memory="16 GB"))
    small = plan(Settings(), 6 * GIB)
    assert (small.precision, small.optimizer, small.micro_batch, small.checkpointing) == ("bfloat16", "adafactor", 1,
                                                                                         True)
    assert plan(Settings(memory="12 GB"), has_8_bit=False).optimizer == "adafactor"
    assert plan(Settings(memory="12 GB", optimizer="adamw 8-bit"), has_8_bit=False).optimizer == "adamw 8-bit"
    assert plan(Settings(memory="8 GB", batch=4, fused_backward=True)).micro_batch == 4
    with pytest.raises(SettingsError, match="fused_backward"):
        plan(Settings(fused_backward=True, micro_batch=2))
