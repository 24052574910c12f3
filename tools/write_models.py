"""Writes docs/MODELS.md: what the tests of the families find on each ComfyUI.

    python tools/write_models.py <folder of a ComfyUI> ...

Runs tests/host/sampling/test_families.py on each and puts the outcomes into one table, the newest ComfyUI first.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

sys.path.insert(0, str(Path(__file__).resolve().parent))

from harness.find import PACK, host_version

TESTS = "tests/host/sampling/test_families.py"
COLUMNS = {"test_equals_a_hand_written_loop": "sampler", "test_one_copy_equals_two": "one copy",
           "test_adapters_are_saved_and_loaded": "adapters", "test_training_learns": "training"}
WORDS = {"passed": "yes", "skipped": "-", "failure": "**no**", "error": "**no**"}
HEAD = """# Models

Written by `tools/write_models.py` from `tests/host/sampling/test_families.py`, which builds every family at a tiny size
from the host's own classes, with random weights.

* **sampler**: KSampler (GCFG), GCFG Guider and Apply GCFG to Model equal a loop written by hand (2e-4 of the latent's
  standard deviation).
* **one copy**: with a LoRA on all linear and convolution layers, base and LoRA over one copy of the weights equal two
  models (1e-3), and no other network has run. The number is of forward passes a step for base[null], base[prompt] and
  the LoRA: 1 is one batch of all rows; 2 where the network mixes the rows of its batch, so that the LoRA's rows run by
  themselves; 3 where it takes one row at a time. The weights are the same ones.
* **adapters**: low-rank weights on all these layers are saved and loaded by Save and Load Concept Model and, as a stock
  LoRA, by ComfyUI's own loader (1e-4).
* **training**: a LoRA under the empty prompt learns on the host's own forward and backward pass, and its file gives
  what was learned (1e-3). LTX-2 and MiniMax H3 learn pictures, without their sound; what they make of the text before
  their first block stays as it is.

`-`: this ComfyUI does not have the family.

"""
TAIL = """
Not in the table: Mochi and Anima, whose networks have no small form, CogVideoX, whose first step, without any signal,
is only right to 2.03e-4, models in pixels, of sound or of three dimensions alone, and variants of the families above
(Wan's Camera, Fun, HuMo, Animate and the like, inpainting models).

Of every kind of patch (LoRA and LoCon, LoHa, LoKr, GLoRA, OFT and BOFT, DoRA, full differences, `set`, slices of fused
weights, norms and biases) `tests/host/sampling/test_patch_kinds.py` shows that rows equal merged weights (1e-4); on
layers in fp8, mxfp8, nvfp4 and int8 `tests/host/sampling/test_quantized.py` shows it against the dequantized weights,
on those of ComfyUI-GGUF (Q8_0, Q4_0) `tests/host/beside/test_gguf.py`.
What bypass loaders inject runs on rows, too: LoRA, LoHa, LoKr, GLoRA and OFT as merged weights (1e-3), a DoRA without
its magnitude and a BOFT with the bias turned, as ComfyUI runs them (1e-4). Beside a base that carries a bypass BOFT
itself another model gets a copy of the weights, and a clone of it is refused. A change about as large as the model, of
a weight's shape, or of something that is no layer gets a copy, made once and kept while the inputs stay the same, and
the log says so.

The workflows on Z-Image, Qwen-Image, Flux and Wan (33 to 36) run on genuine small files of their families by the stock
loaders. Their text encoders cannot be small: ComfyUI builds Qwen3 4B (36 layers, 2560 wide), Qwen2.5-VL 7B (28, 3584),
T5-XXL (24, 4096) and UMT5-XXL (24, 4096) at one size, whatever a file holds. In ordinary runs data sets speak for them;
the slow test of `tests/host/server/test_workflows.py` gives each a file of all its layers in float8 (20 to 60 MB, 5 to
10 GB in memory). With T5-XXL and CLIP-L it has run from the words to the picture (10 minutes and 6.4 GB on a busy
machine); the other three were not run to their ends for want of memory and time.

Text-free concept models (Convert to Null-Text Model): for UNets a constant in the place of each cross-attention,
measured; for Wan, LTX-Video, LTX-2 (what the picture and what the sound reads) and Cosmos Predict2 its keys and values
of the empty prompt, exact (`tests/host/concepts/test_null_tokens.py`). On other transformers, and on those of LTX's
whose keys and values follow the noise level (`cross_attention_adaln`), the node says that a concept is a LoRA or a
fine-tuned model, measured under the empty prompt, and so are all adapters of transformers.
"""


def outcomes(host: Path) -> dict[tuple[str, str], str]:
    """By (test, family): passed, skipped, failure or error."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", TESTS, f"--junitxml={report}"],
                       cwd=PACK, env=os.environ | {"COMFYUI_PATH": str(host), "GCFG_REQUIRE_HOST": "1"}, check=False)
        cases = ElementTree.parse(report).iter("testcase")
        return {tuple(case.get("name").rstrip("]").split("[")): outcome(case) for case in cases}


def outcome(case: ElementTree.Element) -> str:
    """What became of one test."""
    found = next((part for part in case if part.tag in WORDS), None)
    return "passed" if found is None else found.tag


def passes() -> dict[str, int]:
    """Forward passes a step by family, as the tests state and check them; read without a ComfyUI."""
    text = (PACK / "tools/harness/models/families.py").read_text()
    found = {}
    listed = text[text.index("\nFAMILIES = "):].partition("\n}\n")[0]
    for entry in listed.split("\n    \"")[1:]:
        stated = entry.partition("passes=")[2]
        found[entry.partition("\"")[0]] = int(stated[0]) if stated else 1
    return found


def table(results: dict[str, dict[tuple[str, str], str]]) -> str:
    """A row a family, a column for each test on each ComfyUI."""
    steps = passes()
    heads = [f"{label}, {version}" for version in results for label in COLUMNS.values()]
    lines = [f"| family | {' | '.join(heads)} |", "|---|" + "---|" * len(heads)]
    for family, count in steps.items():
        cells = []
        for found in results.values():
            for test, label in COLUMNS.items():
                word = WORDS[found[test, family]]
                cells.append(f"yes, {count}" if (word, label) == ("yes", "one copy") else word)
        lines.append(f"| {family} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(hosts: list[str]) -> int:
    if not hosts:
        print(__doc__)
        return 2
    found = sorted((host_version(Path(host)), Path(host)) for host in hosts)[::-1]
    results = {".".join(map(str, version)): outcomes(host) for version, host in found}
    (PACK / "docs" / "MODELS.md").write_text(HEAD + table(results) + TAIL)
    bad = [key for cases in results.values() for key, outcome in cases.items() if WORDS[outcome] == "**no**"]
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
