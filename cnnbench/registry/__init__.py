"""Registries of what a recipe can name, and the options that each kind shares."""
