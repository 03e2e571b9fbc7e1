"""Compression: stages that make a trained network smaller; importing this registers them all."""

from cnnbench.compression.stages import Record, Stage, build_stage, rebuild

__all__ = ["Record", "Stage", "build_stage", "rebuild"]
