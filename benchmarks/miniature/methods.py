"""Every recipe of the comparison, by family: a family is one curve of the plot."""

from __future__ import annotations

from dataclasses import dataclass

from gcfg.guidance import Recipe
from gcfg.miniature import recipes
from gcfg.miniature.recipes import BASE_CLASS


@dataclass(frozen=True)
class Method:
    """A recipe with its family, its scale for people and the way its prompt is written."""

    family: str
    scale: str
    recipe: Recipe
    prompt: str = "colour"

    @property
    def key(self) -> str:
        return f"{self.family}, {self.scale}, {self.prompt}"


def comparison() -> list[Method]:
    """Base, fine-tunes, concept model alone, and GCFG over its scales and prompts."""
    base = [Method("base, CFG", f"{w:g}", recipes.base_cfg(w), "class and colour") for w in (1.0, 2.0, 4.0)]
    own = [Method("tuned, own CFG", f"{w:g}", recipes.tuned_cfg(w)) for w in (1.0, 2.0, 4.0)]
    null = [Method("tuned, base null", f"{w:g}", recipes.tuned_base_null(w)) for w in (1.5, 2.0, 4.0)]
    alone = [Method("concept alone", f"{w:g}", recipes.concept_only(w)) for w in (1.0, 1.5)]
    grid = [Method(f"GCFG, concept {a:g}", f"{b:g}", recipes.gcfg(a, b), prompt)
            for a, prompt in ((1.0, "colour"), (1.5, "colour"), (1.0, "caption")) for b in (1.0, 2.0, 4.0)]
    return [*base, *own, *null, *alone, *grid]


def remedies() -> list[Method]:
    """What a recipe can do about the colour that the concept does not have."""
    named = "class and colour"
    return [
        Method("norm limit 0.4 on the concept", "2", recipes.limited_concept(2.0, 0.4)),
        Method("concept from 10 % on", "2", recipes.late_concept(2.0, 0.1)),
        Method("control rises by 20 %", "2 to 6", recipes.rising_control(2.0, 6.0)),
        *(Method("control of the tuned model", f"{w:g}", recipes.tuned_control(w)) for w in (2.0, 4.0)),
        *(Method("control from the class", f"{w:g}", recipes.class_control(w), named) for w in (2.0, 4.0, 5.0)),
        *(Method("concept across control", f"{w:g}", recipes.across_control(w)) for w in (2.0, 3.0, 4.0)),
        Method("concept across control", "2", recipes.across_control(2.0), "caption"),
        *(Method("across control, from the class", f"{w:g}", recipes.across_control(w, BASE_CLASS), named)
          for w in (2.0, 3.0, 4.0)),
    ]


def further() -> list[Method]:
    """The fine-tune under its whole caption, and a concept whose size follows that of the control guidance."""
    own = [Method("tuned, own CFG", f"{w:g}", recipes.tuned_cfg(w), "caption") for w in (1.0, 2.0, 4.0)]
    balanced = [Method(f"concept balanced at {share:g}", "2", recipes.balanced_concept(share, 2.0))
                for share in (1.0, 2.0, 4.0, 8.0)]
    return [*own, *balanced]


def every_method() -> list[Method]:
    """All that is sampled."""
    return [*comparison(), *remedies(), *further()]
