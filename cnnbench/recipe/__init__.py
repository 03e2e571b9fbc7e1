"""Recipes: sections, YAML with line numbers, and checks before anything runs."""
