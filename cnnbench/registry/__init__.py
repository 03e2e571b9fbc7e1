"""Registries of the components that a recipe can name, and the options shared by each kind."""
