"""Layers and blocks shared by several families."""
