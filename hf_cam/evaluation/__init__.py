"""Evaluate methods and layers: measure the maps of a data set with metrics, tabulate, plot, and choose the best."""

from hf_cam.evaluation.bench import evaluate
from hf_cam.evaluation.samples import Sample, samples_of
from hf_cam.evaluation.table import Evaluation, Record, Row
from hf_cam.evaluation.tuning import Tuned, tune

__all__ = ["Evaluation", "Record", "Row", "Sample", "Tuned", "evaluate", "samples_of", "tune"]
