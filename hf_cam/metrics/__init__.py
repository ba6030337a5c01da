"""Judges of maps: pure functions, each with its range, its direction and its paper."""

from hf_cam.metrics.localization import average_precision, energy_inside, peak_inside

__all__ = ["average_precision", "energy_inside", "peak_inside"]
