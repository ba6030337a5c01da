"""The public names of the package grad-cam (`pytorch_grad_cam`, 1.5) on hf-cam's engine.

Replace `pytorch_grad_cam` by `hf_cam.compat.pytorch_grad_cam` in the imports of a script; the rest stays. Maps are
numpy arrays `[B, H, W]`, layers are modules, and `reshape_transform` works as it does there. The model is left
unchanged: it is not put into evaluation mode, and gets no hooks and no `.grad`. Where the values differ, the page
docs/migration/pytorch-grad-cam.md gives the reason and the figures.

>>> import torch
>>> from torch import nn
>>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
>>> with GradCAM(model=net, target_layers=[net[1]]) as cam:
...     cam(input_tensor=torch.rand(2, 3, 24, 32)).shape
(2, 24, 32)
"""

from __future__ import annotations

import sys

from hf_cam.compat.pytorch_grad_cam import methods, metrics, utils
from hf_cam.compat.pytorch_grad_cam.ablation_layer import AblationLayer, AblationLayerFasterRCNN, AblationLayerVit
from hf_cam.compat.pytorch_grad_cam.activations_and_gradients import ActivationsAndGradients
from hf_cam.compat.pytorch_grad_cam.base_cam import BaseCAM
from hf_cam.compat.pytorch_grad_cam.feature_factorization.deep_feature_factorization import (
    DeepFeatureFactorization,
    run_dff_on_image,
)
from hf_cam.compat.pytorch_grad_cam.guided_backprop import GuidedBackpropReLUModel
from hf_cam.compat.pytorch_grad_cam.methods import (
    FEM,
    KPCA_CAM,
    AblationCAM,
    EigenCAM,
    EigenGradCAM,
    FinerCAM,
    FullGrad,
    GradCAM,
    GradCAMElementWise,
    GradCAMPlusPlus,
    HiResCAM,
    LayerCAM,
    RandomCAM,
    RefineCAM,
    ScoreCAM,
    SegEigenCAM,
    ShapleyCAM,
    XGradCAM,
)
from hf_cam.compat.pytorch_grad_cam.sess import SESS

__all__ = [
    "FEM",
    "KPCA_CAM",
    "SESS",
    "AblationCAM",
    "AblationLayer",
    "AblationLayerFasterRCNN",
    "AblationLayerVit",
    "ActivationsAndGradients",
    "BaseCAM",
    "DeepFeatureFactorization",
    "EigenCAM",
    "EigenGradCAM",
    "FinerCAM",
    "FullGrad",
    "GradCAM",
    "GradCAMElementWise",
    "GradCAMPlusPlus",
    "GuidedBackpropReLUModel",
    "HiResCAM",
    "LayerCAM",
    "RandomCAM",
    "RefineCAM",
    "ScoreCAM",
    "SegEigenCAM",
    "ShapleyCAM",
    "XGradCAM",
    "metrics",
    "run_dff_on_image",
    "utils",
]

ONE_CLASS_EACH = (
    "ablation_cam",
    "eigen_cam",
    "eigen_grad_cam",
    "fem",
    "finer_cam",
    "fullgrad_cam",
    "grad_cam",
    "grad_cam_elementwise",
    "grad_cam_plusplus",
    "hirescam",
    "kpca_cam",
    "layer_cam",
    "random_cam",
    "refine_cam",
    "score_cam",
    "seg_eigen_cam",
    "shapley_cam",
    "xgrad_cam",
)
"""Modules of grad-cam that hold one class each; here they are all names of one module, `methods`."""

for name in ONE_CLASS_EACH:
    sys.modules[f"{__name__}.{name}"] = methods
    globals()[name] = methods
del name
