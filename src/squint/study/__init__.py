"""Studies: recipes, run folders and the command that goes from one to the other."""

from squint.study.config import RecipeConfig
from squint.study.folder import RunFolder
from squint.study.recipes import load_recipe, recipe_names
from squint.study.run import run_study

__all__ = ["RecipeConfig", "RunFolder", "load_recipe", "recipe_names", "run_study"]
