"""`recipe VERB FILE`: look at a shared file, compare, measure again, write."""

from fastdiff.commands.recipe.verbs import run as run
