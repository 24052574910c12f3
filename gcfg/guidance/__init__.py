"""The method: what to predict, how to combine it, and what one step must evaluate. Plain torch, no host."""

from .combine import combine
from .plan import Plan, Term, plan
from .recipe import BASE, UNCONDITIONAL, Guidance, Prediction, Recipe
from .reuse import Performance, Reuse
from .schedule import Progress, Schedule
from .shaping import Momentum, Shaping

__all__ = ["BASE", "UNCONDITIONAL", "Guidance", "Momentum", "Performance", "Plan", "Prediction", "Progress", "Recipe",
           "Reuse", "Schedule", "Shaping", "Term", "combine", "plan"]
