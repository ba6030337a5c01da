"""One method: a pure function of the target layer's signals."""

from torch import Tensor

import hf_cam


@hf_cam.method(
    "rowcam",
    name="RowCAM",
    paper="an example; no paper",
    summary="Grad-CAM of whole rows: every cell of a row gets the row's mean.",
)
def rowcam(activations: Tensor, gradients: Tensor, power: float = 1.0) -> Tensor:
    """`mean(g_c) mean_x(a_c)`, each row's mean in all of its cells; `power` bends it."""
    rows = activations.mean(-1, keepdim=True).expand_as(activations)
    return gradients.mean((-2, -1), keepdim=True) * rows.abs().pow(power) * rows.sign()
