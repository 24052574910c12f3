"""Guidances as one line of text, and back: ``a cat AND a wizard :0.7 AND_NOT blurry :0.5 [0.2-0.8]``.

A line is prompts joined by words in capitals, each with an optional weight ``:0.7`` and an optional window of sampling
progress ``[0.2-0.8]``. AND adds (composable diffusion, arXiv 2206.01714), AND_NOT pushes away, AND_PERP adds what is
not along the first prompt (Perp-Neg, arXiv 2304.04968). Quotes keep a prompt as it is: ``"rock AND roll" :0.5``.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from .recipe import BASE, Guidance, Prediction, Recipe

AND, NOT, PERP = "AND", "AND_NOT", "AND_PERP"
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?"
_JOINT = re.compile(rf'"(?:[^"\\]|\\.)*"|(?<!\S)({NOT}|{PERP}|{AND})(?!\S)')
_WEIGHT = re.compile(rf"(?:^|\s):({_NUMBER})$")
_WINDOW = re.compile(rf"(?:^|\s)\[({_NUMBER})-({_NUMBER})\]$")
_BROKEN = re.compile(r"\s:[\d.+-]\S*$|\[[\d.+\s-]*\]$")
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')


@dataclass(frozen=True)
class Prompt:
    """One prompt of a line.

    Attributes:
        text: the prompt.
        weight: times the common scale; negative pushes away.
        start, end: window in sampling progress, 0 to 1.
        across: without its part along the first prompt's guidance.
    """

    text: str
    weight: float = 1.0
    start: float = 0.0
    end: float = 1.0
    across: bool = False


def parse(line: str) -> tuple[Prompt, ...]:
    """The prompts of a line.

    Raises:
        ValueError: a prompt is missing, or a weight or window cannot be read; the message names the place.
    """
    prompts, joint, begin = [], AND, 0
    for match in (*(m for m in _JOINT.finditer(line) if m[1]), None):
        part = line[begin:match.start() if match else len(line)].strip()
        if part:
            prompts.append(_prompt(part, joint, first=not prompts))
        elif prompts or match is None:
            raise ValueError(f"There is no prompt{f' after {joint}' if line.strip() else ''} in '{line}'.")
        if match:
            joint, begin = match[1], match.end()
    return tuple(prompts)


def _prompt(part: str, joint: str, first: bool) -> Prompt:
    text, weight, window = part, None, None
    while found := (_WEIGHT.search(text) if weight is None else None) or (
            _WINDOW.search(text) if window is None else None):
        if found.re is _WEIGHT:
            weight = float(found[1])
        else:
            window = float(found[1]), float(found[2])
        text = text[:found.start()].rstrip()
    start, end = window or (0.0, 1.0)
    quoted = _QUOTED.fullmatch(text)
    if not quoted and _BROKEN.search(text):
        raise ValueError(f"The end of '{part}' is no weight such as :0.7 and no window such as [0.2-0.8], each given "
                         "once.")
    if not 0.0 <= start <= end <= 1.0:
        raise ValueError(f"The window of '{part}' must satisfy 0 <= start <= end <= 1.")
    if not text:
        raise ValueError(f"'{part}' has no prompt.")
    if joint == PERP and first:
        raise ValueError(f"{PERP} needs a prompt before it: '{part}' is the first.")
    if quoted:
        text = json.loads(text, strict=False)
    weight = 1.0 if weight is None else weight
    return Prompt(text, -weight if joint == NOT else weight, start, end, joint == PERP)


def to_line(prompts: Sequence[Prompt]) -> str:
    """The line that :func:`parse` reads as these prompts."""
    words: list[str] = []
    for prompt in prompts:
        away = prompt.weight < 0 and not prompt.across
        joint = PERP if prompt.across else NOT if away else AND
        words += [joint] if words or joint != AND else []
        words.append(_literal(prompt.text))
        weight = -prompt.weight if away else prompt.weight
        words += [f":{weight:.6g}"] if weight != 1.0 else []
        words += [f"[{prompt.start:.6g}-{prompt.end:.6g}]"] if (prompt.start, prompt.end) != (0.0, 1.0) else []
    return " ".join(words)


def _literal(text: str) -> str:
    """A prompt as it stands in a line, in quotes where it would be read as something else."""
    try:
        plain = '"' not in text and parse(text) == (Prompt(text),)
    except ValueError:
        plain = False
    return text if plain else json.dumps(text, ensure_ascii=False)


def recipe(prompts: Sequence[Prompt], scale: float) -> Recipe:
    """Guidances on the base model, ``D_0 + sum_i scale weight_i (D(c_i) - D_0)``, conditionings named by text."""
    first = (Prediction(BASE, prompts[0].text), Prediction()) if prompts else None
    return Recipe(tuple(
        Guidance(Prediction(BASE, p.text), scale=scale * p.weight, start=p.start, end=p.end, name=p.text,
                 perpendicular_to=first if p.across else None) for p in prompts))


def prompts_of(guidances: Sequence[Guidance], scale: float = 1.0) -> tuple[Prompt, ...]:
    """Guidances as prompts, by their names: the inverse of :func:`recipe` for guidances that it made.

    Of others the name, the scale, the window and whether they are perpendicular to something remain.
    """
    if scale == 0.0 or not math.isfinite(scale):
        raise ValueError(f"scale must be a number other than 0, not {scale}.")
    return tuple(Prompt(g.label, g.scale / scale, g.start, g.end, g.perpendicular_to is not None) for g in guidances)
