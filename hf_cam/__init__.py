"""hf-cam: what a vision model of the Hugging Face ecosystem looked at.

`import hf_cam` is quick: it loads no torch. It makes the tasks "image-cam" and "explain" known to
`transformers.pipeline`, and every public name is imported on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from hf_cam._register import register_tasks_on_import

if TYPE_CHECKING:
    from hf_cam import methods, metrics, targets
    from hf_cam.auditing.audit import Audit, audit
    from hf_cam.auditing.findings import Finding
    from hf_cam.cam import CAM
    from hf_cam.comparison import Comparison, compare
    from hf_cam.data.dataset import explain_dataset, load_explanations
    from hf_cam.data.explain import Explain
    from hf_cam.data.hub import push_explanations
    from hf_cam.discovery.concepts import Concept, Concepts, concepts
    from hf_cam.errors import HFCamError
    from hf_cam.evaluation.bench import evaluate
    from hf_cam.evaluation.table import Evaluation
    from hf_cam.evaluation.tuning import Tuned, tune
    from hf_cam.explainer import Explainer, explain
    from hf_cam.explanation import Explanation
    from hf_cam.exporting.export import export
    from hf_cam.factorization import DeepFeatureFactorization
    from hf_cam.guided import GuidedBackprop, guided_gradcam
    from hf_cam.handles import (
        DFF,
        DRISE,
        FEM,
        ISCAM,
        KPCACAM,
        RISE,
        SSCAM,
        AblationCAM,
        AttentionRollout,
        AttnLRP,
        Chefer,
        ClassActivationMap,
        EigenCAM,
        EigenGradCAM,
        FinerCAM,
        FullGrad,
        GradCAM,
        GradCAMElementWise,
        GradCAMPlusPlus,
        GradECLIP,
        GuidedGradCAM,
        HiResCAM,
        InputGradient,
        InputXGradient,
        IntegratedGradients,
        LayerCAM,
        LeGrad,
        LibraCAM,
        LibraGrad,
        Occlusion,
        RandomCAM,
        RawAttention,
        ReciproCAM,
        RefineCAM,
        ScoreCAM,
        SegEigenCAM,
        ShapleyCAM,
        SmoothGrad,
        SmoothGradCAMPlusPlus,
        XGradCAM,
    )
    from hf_cam.heads import register_head
    from hf_cam.images.drawing import gradient_picture, overlay
    from hf_cam.images.reading import load_image
    from hf_cam.interfaces.pipelines import ImageCamPipeline, pipeline
    from hf_cam.interfaces.training import AuditCallback
    from hf_cam.methods import list_methods, method
    from hf_cam.metrics import metric
    from hf_cam.models.loading import LoadedModel, load
    from hf_cam.results.difference import Difference, difference
    from hf_cam.results.grid import grid
    from hf_cam.target_layers.adapter import Adapter
    from hf_cam.target_layers.infer import infer_adapter
    from hf_cam.words.answer import Answer
    from hf_cam.words.methods import list_word_methods, word_method
    from hf_cam.words.word_cam import WordCAM
    from hf_cam.zoo import demo_model

__version__ = "0.2.0"

_HOMES = {
    "Audit": "auditing.audit",
    "AuditCallback": "interfaces.training",
    "Finding": "auditing.findings",
    "audit": "auditing.audit",
    "Concept": "discovery.concepts",
    "Concepts": "discovery.concepts",
    "concepts": "discovery.concepts",
    "export": "exporting.export",
    "Adapter": "target_layers.adapter",
    "CAM": "cam",
    "DeepFeatureFactorization": "factorization",
    "GuidedBackprop": "guided",
    "guided_gradcam": "guided",
    "FullGrad": "handles",
    "Comparison": "comparison",
    "compare": "comparison",
    "RefineCAM": "handles",
    "FinerCAM": "handles",
    "ScoreCAM": "handles",
    "AblationCAM": "handles",
    "ShapleyCAM": "handles",
    "FEM": "handles",
    "RawAttention": "handles",
    "AttentionRollout": "handles",
    "Chefer": "handles",
    "LeGrad": "handles",
    "GradECLIP": "handles",
    "AttnLRP": "handles",
    "LibraCAM": "handles",
    "LibraGrad": "handles",
    "Occlusion": "handles",
    "DFF": "handles",
    "GuidedGradCAM": "handles",
    "ISCAM": "handles",
    "SSCAM": "handles",
    "ClassActivationMap": "handles",
    "ReciproCAM": "handles",
    "DRISE": "handles",
    "RISE": "handles",
    "SmoothGradCAMPlusPlus": "handles",
    "SmoothGrad": "handles",
    "IntegratedGradients": "handles",
    "InputXGradient": "handles",
    "InputGradient": "handles",
    "KPCACAM": "handles",
    "SegEigenCAM": "handles",
    "EigenGradCAM": "handles",
    "XGradCAM": "handles",
    "GradCAMPlusPlus": "handles",
    "GradCAMElementWise": "handles",
    "EigenCAM": "handles",
    "Explanation": "explanation",
    "GradCAM": "handles",
    "HFCamError": "errors",
    "HiResCAM": "handles",
    "ImageCamPipeline": "interfaces.pipelines",
    "LayerCAM": "handles",
    "RandomCAM": "handles",
    "demo_model": "zoo",
    "Evaluation": "evaluation",
    "Tuned": "evaluation.tuning",
    "evaluate": "evaluation",
    "Explainer": "explainer",
    "LoadedModel": "models.loading",
    "explain": "explainer",
    "Explain": "data.explain",
    "explain_dataset": "data.dataset",
    "load_explanations": "data.dataset",
    "push_explanations": "data.hub",
    "load": "models.loading",
    "infer_adapter": "target_layers.infer",
    "list_methods": "methods",
    "method": "methods",
    "metric": "metrics",
    "load_image": "images.reading",
    "overlay": "images.drawing",
    "gradient_picture": "images.drawing",
    "Difference": "results.difference",
    "difference": "results.difference",
    "grid": "results.grid",
    "pipeline": "interfaces.pipelines",
    "register_head": "heads",
    "tune": "evaluation.tuning",
    "Video": "images.videos",
    "Answer": "words.answer",
    "WordCAM": "words.word_cam",
    "list_word_methods": "words.methods",
    "word_method": "words.methods",
}
_MODULES = ("methods", "metrics", "targets")

__all__ = [
    "CAM",
    "DFF",
    "DRISE",
    "FEM",
    "ISCAM",
    "KPCACAM",
    "RISE",
    "SSCAM",
    "AblationCAM",
    "Adapter",
    "Answer",
    "AttentionRollout",
    "AttnLRP",
    "Audit",
    "AuditCallback",
    "Chefer",
    "ClassActivationMap",
    "Comparison",
    "Concept",
    "Concepts",
    "DeepFeatureFactorization",
    "Difference",
    "EigenCAM",
    "EigenGradCAM",
    "Evaluation",
    "Explain",
    "Explainer",
    "Explanation",
    "Finding",
    "FinerCAM",
    "FullGrad",
    "GradCAM",
    "GradCAMElementWise",
    "GradCAMPlusPlus",
    "GradECLIP",
    "GuidedBackprop",
    "GuidedGradCAM",
    "HFCamError",
    "HiResCAM",
    "ImageCamPipeline",
    "InputGradient",
    "InputXGradient",
    "IntegratedGradients",
    "LayerCAM",
    "LeGrad",
    "LibraCAM",
    "LibraGrad",
    "LoadedModel",
    "Occlusion",
    "RandomCAM",
    "RawAttention",
    "ReciproCAM",
    "RefineCAM",
    "ScoreCAM",
    "SegEigenCAM",
    "ShapleyCAM",
    "SmoothGrad",
    "SmoothGradCAMPlusPlus",
    "Tuned",
    "Video",
    "WordCAM",
    "XGradCAM",
    "__version__",
    "audit",
    "compare",
    "concepts",
    "demo_model",
    "difference",
    "evaluate",
    "explain",
    "explain_dataset",
    "export",
    "gradient_picture",
    "grid",
    "guided_gradcam",
    "infer_adapter",
    "list_methods",
    "list_word_methods",
    "load",
    "load_explanations",
    "load_image",
    "method",
    "methods",
    "metric",
    "metrics",
    "overlay",
    "pipeline",
    "push_explanations",
    "register_head",
    "targets",
    "tune",
    "word_method",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(f"hf_cam.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
    if name in _MODULES:
        return importlib.import_module(f"hf_cam.{name}")
    raise AttributeError(f"module 'hf_cam' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


register_tasks_on_import()
