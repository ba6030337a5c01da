"""Audit a model while transformers' `Trainer` trains it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback

from hf_cam.auditing.audit import Audit, audit, checked, fitted
from hf_cam.errors import OptionError, brief
from hf_cam.models.loading import LoadedModel, load
from hf_cam.request import check_count

Report = Callable[[dict[str, float], int], Any]


class AuditCallback(TrainerCallback):
    """Audit a fixed set of images every N steps, and note what is found in the trainer's history.

    `trainer.state.log_history` gets entries with `audit_findings`, the number of regions that the model reads beside
    the objects, `audit_drop`, the largest fall in accuracy among them, and `audit_accuracy`. `audits` keeps the results
    by step.

    Args:
        data: As in `hf_cam.audit`.
        every: The number of steps between two audits.
        processor: The image processor; the trainer's own where not given.
        report: Called with the figures and the step, such as `wandb.log`.
        settings: Further arguments of `hf_cam.audit`.

    Raises:
        OptionError: `every` is less than 1, an argument is none that an audit takes, or the data is of another kind.
        ImageError: the data holds no images.
        MethodError: there is no such method.
    """

    def __init__(
        self, data: Any, *, every: int = 500, processor: Any = None, report: Report | None = None, **settings: Any
    ) -> None:
        check_count("every", every)
        if report is not None and not callable(report):
            raise OptionError(f"report must be a function of the figures and the step, got {brief(report)}")
        checked(data, **settings)
        self.data, self.every, self.processor, self.settings = data, every, processor, settings
        self.report = report
        self.audits: dict[int, Audit] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **others: Any) -> None:
        """Refuse what no audit of the model takes before the training, and not after its first steps.

        Raises:
            OptionError: the classes do not match, or the model has none.
            ModelError: there is no processor.
        """
        del args, state, control
        fitted(self._loaded(model, others), checked(self.data, **self.settings), **self.settings)

    def _loaded(self, model: Any, others: dict[str, Any]) -> LoadedModel:
        return load(model, processor=self.processor or others.get("processing_class"))

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **others: Any) -> None:
        """Audit the model if it is its turn."""
        del args, control
        if state.global_step % self.every or not state.is_world_process_zero:
            return
        found = audit(self._loaded(model, others), self.data, **self.settings)
        self.audits[state.global_step] = found
        figures = {
            "audit_findings": float(len(found.suspicious)),
            "audit_drop": max((one.drop for one in found.suspicious), default=0.0),
            "audit_accuracy": found.accuracy,
        }
        state.log_history.append({**figures, "epoch": state.epoch, "step": state.global_step})
        if self.report is not None:
            self.report(figures, state.global_step)
