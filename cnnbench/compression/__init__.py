"""Stages that compress a trained network; importing this package registers them."""

from cnnbench.compression.stages import Record, Stage, build_stage, rebuild

__all__ = ["Record", "Stage", "build_stage", "rebuild"]
