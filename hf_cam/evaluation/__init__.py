"""Judging methods and layers: maps of a data set under every metric, tables, charts, and the choice of the best."""

from hf_cam.evaluation.bench import evaluate
from hf_cam.evaluation.samples import Sample, samples_of
from hf_cam.evaluation.table import Evaluation, Record, Row
from hf_cam.evaluation.tuning import Tuned, tune

__all__ = ["Evaluation", "Record", "Row", "Sample", "Tuned", "evaluate", "samples_of", "tune"]
