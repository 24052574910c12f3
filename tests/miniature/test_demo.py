"""The command line: the demo from end to end, help, and exit codes."""

import pytest
import torch

from gcfg.__main__ import VERBS, main


def exit_code(arguments):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    return stop.value.code


def test_help_lists_the_verbs_and_each_has_help(capsys):
    assert exit_code(["--help"]) == 0
    listed = capsys.readouterr().out
    for verb in VERBS:
        assert verb in listed
        assert exit_code([verb, "--help"]) == 0
        assert "--help" in capsys.readouterr().out


def test_alone_it_shows_the_help(capsys):
    assert main([]) == 0
    assert "verbs:" in capsys.readouterr().out


def test_wrong_usage_exits_with_2(capsys):
    assert exit_code(["paint"]) == 2
    assert "paint" in capsys.readouterr().err


@pytest.mark.parametrize("arguments, said", [
    (["--count", "3"], "at least 20"),
    (["--out", "nowhere/at/all/a.png"], "folder of --out"),
    (["--out", "a.safetensors"], "must name a picture"),
    (["--models", "nowhere"], "no base.safetensors"),
    (["--out", "/proc/version/a.png"], "folder of --out"),
])
def test_arguments_that_cannot_be_used_are_one_line_and_exit_with_2(arguments, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["demo", *arguments]) == 2
    err = capsys.readouterr().err
    assert said in err and err.startswith("gcfg demo: ") and err.count("\n") == 1


def test_the_demo_writes_picture_and_table(capsys, tmp_path):
    from PIL import Image

    assert main(["demo", "--count", "20", "--out", str(tmp_path / "demo.png")]) == 0
    out = capsys.readouterr().out
    rows = [line for line in out.splitlines() if "caption" in line and "%" in line and "GCFG comes" not in line]
    assert [row.split("  ")[0] for row in rows[:2]] == ["fine-tune, CFG 2", "concept alone"]
    assert "without captions" in out and "Without a single caption GCFG" in out
    with Image.open(tmp_path / "demo.png") as picture:
        assert picture.width > 600 and picture.height > 400


@pytest.mark.parametrize("shares, said", [
    ((1.0, 1.0, 0.8, 0.8, 1.0), "GCFG beats the fine-tune"),
    ((0.9, 0.9, 0.9, 0.91, 0.9), "GCFG equals the fine-tune"),
    ((0.8, 0.9, 0.9, 0.9, 0.9), "GCFG comes near the fine-tune"),
    ((0.9, 0.2, 0.9, 0.9, 0.9), "GCFG falls behind, most in the requested colour, the fine-tune"),
])
def test_the_conclusion_follows_from_the_table(shares, said):
    """Shares: look and colour of GCFG, of the fine-tune, and the unseen colour of both."""
    from gcfg.miniature.evaluate import Score
    from gcfg.miniature.show import Row, conclusion

    look, colour, tuned_look, tuned_colour, unseen = shares

    def row(look: float, colour: float) -> Row:
        return Row("", "", Score(10.0, colour, look, 0.0), Score(10.0, colour, look, unseen), 2, torch.zeros(0))

    tuned, plain = row(tuned_look, tuned_colour), row(look, colour)
    text = conclusion([tuned, tuned, plain, plain, plain])
    assert said in text and f"the look in {look:.0%} of the samples (fine-tune {tuned_look:.0%})" in text
    assert "it equals it once projected" in text


def test_without_matplotlib_it_says_what_to_install(monkeypatch, tmp_path):
    import sys

    from gcfg.miniature.show import draw_grid

    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        draw_grid([], tmp_path / "demo.png")
