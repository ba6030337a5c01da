"""Compare the metrics that quantus also has, on the same maps.

    pip install --no-deps quantus cachetools
    python -m benchmarks.metrics_quantus

Without `--no-deps`, pip installs opencv-python besides the opencv-python-headless that hf-cam depends on. Both write
the same package `cv2`, so the tests would run on a different build from that of users, and removing either one removes
`cv2` altogether. That is why the tests do not depend on quantus. Prints Markdown; the exit code is 1 if two figures
differ.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import quantus
import torch
from quantus.functions.perturb_func import noisy_linear_imputation
from torch import Tensor, nn

from hf_cam import CAM
from hf_cam.metrics import entropy, impute, max_sensitivity, peak_inside, rank_correlation, ranks

SIZE, TOLERANCE = (24, 32), 1e-4
PERCENTAGES = [20, 40, 60, 80]


class Net(nn.Sequential):
    """Two convolutions and a linear head of five classes."""

    def __init__(self, channels: int = 1) -> None:
        super().__init__(
            nn.Conv2d(channels, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU(),
            nn.AdaptiveAvgPool2d((3, 4)), nn.Flatten(), nn.Linear(96, 5),
        )  # fmt: skip


class Explained:
    """Element-wise Grad-CAM for quantus, whose maps are never all zeros; it keeps the maps that it returned."""

    def __init__(self) -> None:
        self.maps: list[Tensor] = []

    def __call__(self, model: nn.Module, inputs: Any, targets: Any, **_: Any) -> np.ndarray:
        pixels = torch.as_tensor(np.asarray(inputs)).float().reshape(-1, 1, *SIZE)
        classes = [int(index) for index in np.asarray(targets)]
        self.maps.append(CAM(model, "gradcam-elementwise", layers="3", reshape=lambda tensor: tensor)(pixels, classes))
        return self.maps[-1][:, None].numpy()


def main() -> int:
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002  (quantus draws from numpy's global state)
    net = Net().eval()
    with torch.no_grad():
        net[-1].weight *= 20
    pixels = torch.rand(6, 1, *SIZE)
    with torch.no_grad():
        data = {"model": net, "x_batch": pixels.numpy(), "y_batch": net(pixels).argmax(1).numpy()}
    print("| | quantus | hf-cam | largest difference | |")
    print("|---|--:|--:|--:|---|")
    agreed = [compare(name, *judge(data)) for name, judge in JUDGES.items()]
    print(f"\nROAD for pictures with three channels: quantus {on_colour()}.")
    return int(not all(agreed))


def compare(name: str, theirs: Any, ours: Any) -> bool:
    theirs, ours = (np.asarray(values, np.float64).ravel() for values in (theirs, ours))
    gap = float(np.abs(theirs - ours).max())
    verdict = "same" if gap <= TOLERANCE else "DIFFERENT"
    print(f"| {name} | {theirs.mean():.4f} | {ours.mean():.4f} | {gap:.1e} | {verdict} |")
    return gap <= TOLERANCE


def options(**more: Any) -> dict[str, Any]:
    return {"abs": False, "normalise": False, "disable_warnings": True, **more}


def random_maps() -> Tensor:
    return torch.rand(6, *SIZE, generator=torch.Generator().manual_seed(1))


def pointing_game(data: dict[str, Any]) -> tuple[Any, Any]:
    maps, masks = random_maps(), torch.rand(6, *SIZE, generator=torch.Generator().manual_seed(2)) > 0.5
    judge = quantus.PointingGame(**options())
    return judge(**data, a_batch=maps[:, None].numpy(), s_batch=masks[:, None].numpy()), peak_inside(maps, masks)


def complexity(data: dict[str, Any]) -> tuple[Any, Any]:
    maps = random_maps()
    return quantus.Complexity(**options())(**data, a_batch=maps[:, None].numpy().copy()), entropy(maps)


def imputation(data: dict[str, Any]) -> tuple[Any, Any]:
    maps, count = random_maps(), 300
    first = [np.argsort(-one.numpy().ravel())[:count] for one in maps]
    theirs = [noisy_linear_imputation(x, indices, noise=0.0) for x, indices in zip(data["x_batch"], first, strict=True)]
    return np.stack(theirs), impute(torch.from_numpy(data["x_batch"]), ranks(maps) < count, noise=0.0)


def road(data: dict[str, Any]) -> tuple[Any, Any]:
    """The share of pictures that keep their class, per percentage of imputed pixels."""
    maps, pixels, classes = random_maps(), torch.from_numpy(data["x_batch"]), torch.from_numpy(data["y_batch"])
    theirs = quantus.ROAD(percentages=PERCENTAGES, noise=0.0, **options())(**data, a_batch=maps[:, None].numpy())
    ours = []
    for percentage in PERCENTAGES:
        missing = ranks(maps) < int(maps[0].numel() * percentage / 100)
        with torch.no_grad():
            found = data["model"](impute(pixels, missing, noise=0.0)).argmax(1)
        ours.append((found == classes).float().mean().item())
    return [theirs[percentage] for percentage in PERCENTAGES], ours


def randomization(data: dict[str, Any]) -> tuple[Any, Any]:
    """The rank correlation after each layer, from the top down, has been re-initialized."""
    explained = Explained()
    judge = quantus.MPRT(layer_order="top_down", seed=1, skip_layers=False, **options())
    clean = explained(data["model"], data["x_batch"], data["y_batch"])
    explained.maps.clear()
    found = judge(**data, a_batch=clean, explain_func=explained)
    theirs = [scores for name, scores in found.items() if name != "original"]
    drawn = explained.maps[-len(theirs) :]
    return theirs, torch.stack([rank_correlation(torch.from_numpy(clean[:, 0]), maps) for maps in drawn])


def sensitivity(data: dict[str, Any]) -> tuple[Any, Any]:
    explained = Explained()
    clean = explained(data["model"], data["x_batch"], data["y_batch"])
    explained.maps.clear()
    judge = quantus.MaxSensitivity(nr_samples=4, lower_bound=0.02, **options())
    theirs = judge(**data, a_batch=clean, explain_func=explained)
    return theirs, max_sensitivity(torch.from_numpy(clean[:, 0]), torch.stack(explained.maps[-4:]))


JUDGES: dict[str, Callable[[dict[str, Any]], tuple[Any, Any]]] = {
    "pointing game, maps with one peak": pointing_game,
    "complexity (entropy)": complexity,
    "ROAD's imputation, one channel": imputation,
    "ROAD, share of classes that are kept, one channel": road,
    "model randomization, layer by layer": randomization,
    "max-sensitivity": sensitivity,
}


def on_colour() -> str:
    pixels = torch.rand(2, 3, *SIZE)
    judge = quantus.ROAD(percentages=PERCENTAGES, noise=0.0, **options())
    try:
        judge(Net(3).eval(), pixels.numpy(), np.zeros(2, int), random_maps()[:2, None].numpy())
    except IndexError as error:
        return f"counts each pixel once per channel and fails ({error})"
    return "runs"


if __name__ == "__main__":
    sys.exit(main())
