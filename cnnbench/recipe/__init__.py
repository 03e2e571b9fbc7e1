"""Recipes: sections, YAML with line numbers, and the checks before anything runs."""
