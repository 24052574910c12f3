"""The command line: the demo from end to end, help, and exit codes."""

import pytest

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
    assert "without captions" in out and "Without a single caption GCFG comes near" in out
    with Image.open(tmp_path / "demo.png") as picture:
        assert picture.width > 600 and picture.height > 400


def test_without_matplotlib_it_says_what_to_install(monkeypatch, tmp_path):
    import sys

    from gcfg.miniature.show import draw_grid

    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        draw_grid([], tmp_path / "demo.png")
