"""Compression: stages that make a trained network smaller; importing this registers them all."""

from cnnbench.compress.stages import Record, Stage, rebuild, stage_of

__all__ = ["Record", "Stage", "rebuild", "stage_of"]
