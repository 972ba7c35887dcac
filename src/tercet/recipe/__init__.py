"""Every knob of Tercet, the graph of a recipe, and its TOML file."""

from __future__ import annotations

from tercet.recipe.data_specs import Asked, Judged, Mix, Mixture, Model, Pairs, Personas, Prefs, Synth
from tercet.recipe.eval_specs import Eval, Gate, Prompts, Report, gate
from tercet.recipe.file import dump, key_lines, load
from tercet.recipe.recipe import Recipe
from tercet.recipe.rl_specs import PPO, RLVR, Extra, Rollouts, Watch
from tercet.recipe.specs import (
    BASE,
    KINDS,
    Base,
    Computing,
    Examples,
    FileRef,
    ModelSource,
    Placement,
    RecipeError,
    SourceSpec,
    StageSpec,
    kinds_of,
)
from tercet.recipe.train_specs import DPO, SFT, Fit, Lora, Reward

__all__ = [
    "BASE",
    "DPO",
    "KINDS",
    "PPO",
    "RLVR",
    "SFT",
    "Asked",
    "Base",
    "Computing",
    "Eval",
    "Examples",
    "Extra",
    "FileRef",
    "Fit",
    "Gate",
    "Judged",
    "Lora",
    "Mix",
    "Mixture",
    "Model",
    "ModelSource",
    "Pairs",
    "Personas",
    "Placement",
    "Prefs",
    "Prompts",
    "Recipe",
    "RecipeError",
    "Report",
    "Reward",
    "Rollouts",
    "SourceSpec",
    "StageSpec",
    "Synth",
    "Watch",
    "dump",
    "gate",
    "key_lines",
    "kinds_of",
    "load",
]
