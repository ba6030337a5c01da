"""Image processors of every kind, as functions from a PIL image to `[C, H, W]`, for the tests of geometry."""

from __future__ import annotations

import io
import random
from collections.abc import Callable

import cv2
import numpy as np
import torch
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor
from torch.nn import functional
from torchvision import transforms as T
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms import functional as F

Process = Callable[[Image.Image], Tensor]
SIDES = (96, 160)
to_tensor = T.ToTensor()


def resized(*steps: Callable) -> Process:
    """A picture of 96 x 160, then whatever follows."""
    return T.Compose([T.Resize(SIDES), *steps])


def pixels(*steps: Callable) -> Process:
    """The same, with steps on the tensor."""
    return resized(to_tensor, *steps)


def small(picture: Image.Image) -> Tensor:
    return pixels()(picture)


def array(picture: Image.Image) -> np.ndarray:
    return np.array(picture.resize(SIDES[::-1]))


def whitened(tensor: Tensor) -> Tensor:
    return (tensor - tensor.mean()) / (tensor.std() + 1e-6)


def whitened_by_channel(tensor: Tensor) -> Tensor:
    return (tensor - tensor.mean((1, 2), keepdim=True)) / (tensor.std((1, 2), keepdim=True) + 1e-6)


def stretched(tensor: Tensor) -> Tensor:
    return (tensor - tensor.min()) / (tensor.max() - tensor.min())


def stretched_by_channel(tensor: Tensor) -> Tensor:
    low, high = tensor.amin((1, 2), keepdim=True), tensor.amax((1, 2), keepdim=True)
    return (tensor - low) / (high - low + 1e-6)


def percentiles(low: float, high: float) -> Callable[[Tensor], Tensor]:
    def windowed(tensor: Tensor) -> Tensor:
        a, b = np.percentile(tensor.numpy(), [low, high])
        return ((tensor - a) / (b - a + 1e-6)).clamp(0, 1)

    return windowed


def window(low: float, high: float) -> Callable[[Tensor], Tensor]:
    return lambda tensor: ((tensor * 255 - low) / (high - low)).clamp(0, 1)


def grey_world(tensor: Tensor) -> Tensor:
    means = tensor.mean((1, 2), keepdim=True)
    return tensor / means * means.mean()


def clahe(picture: Image.Image) -> Tensor:
    lab = cv2.cvtColor(array(picture), cv2.COLOR_RGB2LAB)
    lab[..., 0] = cv2.createCLAHE(2.0, (8, 8)).apply(lab[..., 0])
    return to_tensor(cv2.cvtColor(lab, cv2.COLOR_LAB2RGB))


def otsu(picture: Image.Image) -> Tensor:
    grey = cv2.cvtColor(array(picture), cv2.COLOR_RGB2GRAY)
    return to_tensor(cv2.threshold(grey, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)[1])


def in_space(code: int) -> Process:
    return lambda picture: to_tensor(cv2.cvtColor(array(picture), code))


def local_contrast(picture: Image.Image) -> Tensor:
    grey = small(picture).mean(0).numpy()
    mean = cv2.GaussianBlur(grey, (0, 0), 15)
    spread = np.sqrt(cv2.GaussianBlur((grey - mean) ** 2, (0, 0), 15))
    return torch.from_numpy((grey - mean) / (spread + 0.05))[None]


def without_illumination(picture: Image.Image) -> Tensor:
    """Less its own blurred self, as fundus photographs are prepared."""
    image = array(picture)
    return to_tensor(cv2.addWeighted(image, 4, cv2.GaussianBlur(image, (0, 0), 8), -4, 128))


def ranked(tensor: Tensor) -> Tensor:
    """Every level by its place among all of the picture's, equals in the order in which they come."""
    return tensor.flatten().argsort(stable=True).argsort(stable=True).reshape(tensor.shape) / tensor.numel()


def seeded(picture: Image.Image) -> Tensor:
    """A crop that is drawn at random, the same one each time."""
    torch.manual_seed(3)
    return T.Compose([T.RandomResizedCrop(96, scale=(0.5, 1.0)), to_tensor])(picture)


def upright_by_brightness(picture: Image.Image) -> Tensor:
    """Mirrored so that the brighter half lies on the left, as mammograms are."""
    tensor = small(picture)
    return tensor.flip(2) if tensor[:, :, 80:].mean() > tensor[:, :, :80].mean() else tensor


def filtered(step: ImageFilter.Filter) -> Process:
    return resized(lambda picture: picture.filter(step), to_tensor)


def compressed(picture: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=30)
    return Image.open(buffer).convert("RGB")


def letterbox(where: str, fill: int | str, side: int = 128) -> Process:
    """In proportion into a square, at its start, centre or end; the rest of one grey, or of the picture's mean."""

    def boxed(picture: Image.Image) -> Tensor:
        scale = side / max(picture.size)
        width, height = (max(1, round(scale * length)) for length in picture.size)
        mean = tuple(int(value) for value in np.asarray(picture).reshape(-1, 3).mean(0))
        canvas = Image.new("RGB", (side, side), mean if fill == "mean" else (fill,) * 3)
        left, top = (
            {"start": 0, "centre": (side - length) // 2, "end": side - length}[where] for length in (width, height)
        )
        canvas.paste(picture.resize((width, height)), (left, top))
        return to_tensor(canvas)

    return boxed


def thumbnail(picture: Image.Image) -> Tensor:
    picture = picture.copy()
    picture.thumbnail((100, 100))
    return to_tensor(picture)


def padded_to_multiple(picture: Image.Image, multiple: int = 32) -> Tensor:
    tensor = to_tensor(picture)
    height, width = tensor.shape[1:]
    return functional.pad(tensor, (0, -width % multiple, 0, -height % multiple))


def to_multiple(picture: Image.Image, multiple: int = 14) -> Tensor:
    return to_tensor(picture.resize(tuple(max(multiple, side // multiple * multiple) for side in picture.size)))


def landscape(picture: Image.Image) -> Tensor:
    return small(picture.rotate(90, expand=True) if picture.height > picture.width else picture)


def only_shrunk(picture: Image.Image) -> Tensor:
    """Resized where it is too large, else in the middle of black."""
    if max(picture.size) > 150:
        picture = picture.resize((150, 150))
    canvas = Image.new("RGB", (150, 150))
    canvas.paste(picture, ((150 - picture.width) // 2, (150 - picture.height) // 2))
    return to_tensor(canvas)


def of_array(function: Callable[[np.ndarray], np.ndarray]) -> Process:
    """A function on the whole picture `[H, W, 3]`, as those of albumentations are."""
    return lambda picture: torch.from_numpy(function(np.array(picture))).permute(2, 0, 1).float()


def warped(matrix: list[list[float]]) -> Process:
    return lambda picture: to_tensor(cv2.warpAffine(array(picture), np.float32(matrix), SIDES[::-1]))


def barrel(strength: float) -> Process:
    rows, columns = np.mgrid[: SIDES[0], : SIDES[1]].astype(np.float32)
    y, x = rows - (SIDES[0] - 1) / 2, columns - (SIDES[1] - 1) / 2
    factor = 1 + strength * (x**2 + y**2) / (SIDES[1] / 2) ** 2
    at = (columns + x * (factor - 1)).astype(np.float32), (rows + y * (factor - 1)).astype(np.float32)
    return lambda picture: to_tensor(cv2.remap(array(picture), *at, cv2.INTER_LINEAR))


def perspective(picture: Image.Image) -> Tensor:
    height, width = SIDES
    corners = [[0, 0], [width - 1, 0], [width - 1, height - 1], [0, height - 1]]
    seen = [[10, 5], [width - 10, 0], [width - 1, height - 1], [0, height - 6]]
    return to_tensor(F.perspective(picture.resize((width, height)), corners, seen))


def polar(picture: Image.Image) -> Tensor:
    return to_tensor(cv2.warpPolar(array(picture), SIDES[::-1], (80, 48), 60, cv2.WARP_FILL_OUTLIERS))


def trimmed(dark: bool) -> Process:
    """Without a border that is nearly black, or nearly white."""

    def trim(picture: Image.Image) -> Tensor:
        grey = np.asarray(picture.convert("L"))
        rows, columns = np.nonzero(grey > 10 if dark else grey < 245)
        if len(rows):
            picture = picture.crop((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))
        return small(picture)

    return trim


def around_the_brightest(picture: Image.Image) -> Tensor:
    """Moved so that the centre of brightness lies in the middle, as MNIST's digits are."""
    grey = small(picture).mean(0)
    rows, columns = (torch.arange(side) for side in SIDES)
    y, x = (grey.sum(1) * rows).sum() / grey.sum(), (grey.sum(0) * columns).sum() / grey.sum()
    return small(picture).roll((SIDES[0] // 2 - int(y), SIDES[1] // 2 - int(x)), (1, 2))


def sobel(picture: Image.Image) -> Tensor:
    grey = small(picture).mean(0).numpy()
    return torch.from_numpy(np.hypot(cv2.Sobel(grey, -1, 1, 0), cv2.Sobel(grey, -1, 0, 1)))[None]


def laplacian(picture: Image.Image) -> Tensor:
    return torch.from_numpy(cv2.Laplacian(small(picture).mean(0).numpy(), -1))[None]


def of_crops(picture: Image.Image) -> list[Tensor]:
    return [to_tensor(crop) for crop in T.FiveCrop(96)(T.Resize(128)(picture))]


LINEAR: dict[str, Process] = {
    "bilinear": pixels(),
    "lanczos": T.Compose([T.Resize(SIDES, InterpolationMode.LANCZOS), to_tensor]),
    "bilinear, not antialiased": T.Compose([to_tensor, T.Resize(SIDES, InterpolationMode.BILINEAR, antialias=False)]),
    "corners aligned": lambda picture: functional.interpolate(
        to_tensor(picture)[None], SIDES, mode="bilinear", align_corners=True
    )[0],
    "OpenCV": of_array(lambda image: cv2.resize(image, SIDES[::-1])),
    "OpenCV, height and width mixed up": of_array(lambda image: cv2.resize(image, SIDES)),
    "OpenCV by area": of_array(lambda image: cv2.resize(image, SIDES[::-1], interpolation=cv2.INTER_AREA)),
    "shifted by half a pixel": warped([[1, 0, 0.5], [0, 1, 0.25]]),
    "levels from 0 to 255": resized(T.PILToTensor()),
    "half precision": pixels(Tensor.half),
    "one channel": resized(T.Grayscale(), to_tensor),
    "red alone": pixels(lambda tensor: tensor[:1]),
    "blue first": pixels(lambda tensor: tensor.flip(0)),
    "signs and scales that differ by channel": pixels(
        lambda tensor: tensor * torch.tensor([-1.0, 7.0, 0.01])[:, None, None] + 5
    ),
    "HSV": in_space(cv2.COLOR_RGB2HSV),
    "Lab": in_space(cv2.COLOR_RGB2LAB),
    "with coordinates as a channel": pixels(
        lambda tensor: torch.cat([tensor, torch.linspace(0, 1, SIDES[1]).expand(1, *SIDES)])
    ),
    "with edges as a channel": lambda picture: torch.cat([small(picture), laplacian(picture) / 9]),
    "the same view six times": pixels(lambda tensor: torch.stack([tensor] * 6)),
    "blurred": filtered(ImageFilter.GaussianBlur(3)),
    "sharpened": filtered(ImageFilter.UnsharpMask(2, 100)),
    "median": filtered(ImageFilter.MedianFilter(3)),
}
"""As large as the model's input, stretched to it."""

CONTRAST: dict[str, Process] = {
    "whitened": pixels(whitened),
    "whitened by channel": pixels(whitened_by_channel),
    "whitened, then resized": T.Compose([to_tensor, whitened, T.Resize(SIDES)]),
    "from its least to its largest value": pixels(stretched),
    "from least to largest by channel": pixels(stretched_by_channel),
    "over its norm": pixels(lambda tensor: tensor / tensor.norm()),
    "percentiles 1 to 99": pixels(percentiles(1, 99)),
    "percentiles 25 to 75": pixels(percentiles(25, 75)),
    "grey world": pixels(grey_world),
    "equalized": resized(ImageOps.equalize, to_tensor),
    "equalized, then resized": T.Compose([ImageOps.equalize, T.Resize(SIDES), to_tensor]),
    "autocontrast": resized(ImageOps.autocontrast, to_tensor),
    "autocontrast that cuts off": resized(lambda picture: ImageOps.autocontrast(picture, cutoff=1), to_tensor),
    "CLAHE": clahe,
    "local contrast": local_contrast,
    "ranks": pixels(ranked),
}
"""What a pixel becomes depends on the others."""

HALOS: dict[str, Process] = {
    "without illumination": without_illumination,
    "adaptive threshold": lambda picture: to_tensor(
        cv2.adaptiveThreshold(
            cv2.cvtColor(array(picture), cv2.COLOR_RGB2GRAY),
            255,
            cv2.ADAPTIVE_THRESH_MEAN_C,
            cv2.THRESH_BINARY,
            31,
            2,
        )
    ),
    "solarized at 128": resized(lambda picture: ImageOps.solarize(picture, 128), to_tensor),
    "edges enhanced": filtered(ImageFilter.EDGE_ENHANCE_MORE),
}
"""What is around a thing is as strong as the thing itself."""

CURVES: dict[str, Process] = {
    "gamma 2.2": resized(lambda picture: F.adjust_gamma(picture, 2.2), to_tensor),
    "gamma 0.3": resized(lambda picture: F.adjust_gamma(picture, 0.3), to_tensor),
    "logarithm, of zero too": pixels(torch.log),
    "square root": pixels(torch.sqrt),
    "inverted": resized(ImageOps.invert, to_tensor),
    "posterized to two levels": resized(lambda picture: ImageOps.posterize(picture, 1), to_tensor),
    "posterized": resized(lambda picture: ImageOps.posterize(picture, 3), to_tensor),
    "solarized at 64": resized(lambda picture: ImageOps.solarize(picture, 64), to_tensor),
    "window 100 to 150": pixels(window(100, 150)),
    "window 0 to 20": pixels(window(0, 20)),
    "window 220 to 255": pixels(window(220, 255)),
    "window of grey 0 to 25": resized(T.Grayscale(), to_tensor, window(0, 25)),
    "window of grey 220 to 255": resized(T.Grayscale(), to_tensor, window(220, 255)),
    "threshold": pixels(lambda tensor: (tensor > 0.5).float()),
    "threshold at the mean": pixels(lambda tensor: (tensor > tensor.mean()).float()),
    "threshold of Otsu": otsu,
    "eight colours": resized(lambda picture: picture.quantize(8).convert("RGB"), to_tensor),
    "JPEG": resized(compressed, to_tensor),
}
"""Not linear in the picture's levels."""

PLACED: dict[str, Process] = {
    "shortest edge, centre": T.Compose([T.Resize(128), T.CenterCrop(112), to_tensor]),
    "shortest edge, corner": T.Compose([T.Resize(128), lambda picture: F.crop(picture, 0, 0, 112, 112), to_tensor]),
    "cropped off the centre": T.Compose(
        [T.Resize((128, 160)), lambda picture: F.crop(picture, 10, 33, 96, 96), to_tensor]
    ),
    "cropped alone": T.Compose([T.CenterCrop((96, 80)), to_tensor]),
    "cropped with padding": T.Compose([T.Resize(96), T.CenterCrop(128), to_tensor]),
    "covered, then cropped": lambda picture: to_tensor(ImageOps.fit(picture, (128, 96))),
    "of 32 pixels, cropped to 28": T.Compose([T.Resize(32), T.CenterCrop(28), to_tensor, whitened]),
    "black bars": letterbox("centre", 0),
    "grey bars": letterbox("centre", 114),
    "white below": letterbox("start", 255),
    "grey above": letterbox("end", 114),
    "bars of its mean": letterbox("centre", "mean"),
    "bars, whitened": lambda picture: whitened(letterbox("start", 0)(picture)),
    "padded to a square, then resized": T.Compose(
        [lambda picture: ImageOps.pad(picture, (max(picture.size),) * 2), T.Resize((128, 128)), to_tensor]
    ),
    "mirrored padding": T.Compose([T.Resize(SIDES), T.Pad(16, padding_mode="reflect"), to_tensor]),
    "wide mirrored padding": T.Compose([T.Resize(SIDES), T.Pad(40, padding_mode="symmetric"), to_tensor]),
    "padding by the border": T.Compose([T.Resize(SIDES), T.Pad(16, padding_mode="edge"), to_tensor]),
    "untouched": to_tensor,
    "longest edge": thumbnail,
    "multiples of 14": to_multiple,
    "padded to multiples of 32": padded_to_multiple,
    "only made smaller": only_shrunk,
    "a random crop that is always the same": seeded,
    "in a round aperture": pixels(
        lambda tensor: (
            tensor * (torch.linspace(-1, 1, SIDES[0])[:, None] ** 2 + torch.linspace(-1, 1, SIDES[1]) ** 2 < 1)
        )
    ),
}
"""Cropped, padded, in proportion."""

TURNED: dict[str, Process] = {
    "mirrored": resized(T.RandomHorizontalFlip(1.0), to_tensor),
    "upside down": resized(T.RandomVerticalFlip(1.0), to_tensor),
    "turned by 180": pixels(lambda tensor: tensor.flip(1, 2)),
    "turned by 90": pixels(lambda tensor: tensor.rot90(1, (1, 2))),
    "turned by 270": pixels(lambda tensor: tensor.rot90(-1, (1, 2))),
    "transposed": lambda picture: torch.from_numpy(np.transpose(array(picture), (2, 1, 0)).copy()).float(),
    "transposed the other way": pixels(lambda tensor: tensor.mT.flip(1, 2)),
    "bars, turned by 90": lambda picture: letterbox("start", 0)(picture).rot90(1, (1, 2)),
    "bars, mirrored": lambda picture: letterbox("start", 0)(picture).flip(2),
    "cropped, turned, whitened": lambda picture: whitened(
        T.Compose([T.Resize(128), T.CenterCrop((112, 80)), to_tensor])(picture)
    ).rot90(1, (1, 2)),
    "turned where it is higher than wide": landscape,
}
"""Mirrored and turned."""

NEAREST: dict[str, Process] = {
    "nearest of PIL": T.Compose([T.Resize(SIDES, InterpolationMode.NEAREST), to_tensor]),
    "nearest": T.Compose([to_tensor, T.Resize(SIDES, InterpolationMode.NEAREST)]),
    "nearest, exact": T.Compose([to_tensor, T.Resize(SIDES, InterpolationMode.NEAREST_EXACT)]),
    "dilated": filtered(ImageFilter.MaxFilter(3)),
}
"""That move edges by up to half a pixel themselves."""

OWN = np.random.default_rng(3)
RANDOM: dict[str, Process] = {
    "random crop and flip": T.Compose([T.RandomResizedCrop(96), T.RandomHorizontalFlip(), to_tensor]),
    "random crop of v2": v2.Compose([v2.ToImage(), v2.RandomResizedCrop(96), v2.ToDtype(torch.float32, scale=True)]),
    "random flip": resized(T.RandomHorizontalFlip(), to_tensor),
    "random crop": T.Compose([T.Resize(128), T.RandomCrop(96), to_tensor]),
    "random rotation": resized(T.RandomRotation(10), to_tensor),
    "random perspective": resized(T.RandomPerspective(), to_tensor),
    "jitter of colours": resized(T.ColorJitter(0.4, 0.4, 0.4), to_tensor),
    "jitter of v2": v2.Compose([v2.Resize(SIDES), v2.ColorJitter(0.4), v2.ToImage()]),
    "something erased, mostly not": pixels(T.RandomErasing(0.25)),
    "trivial augmentation": resized(T.TrivialAugmentWide(), to_tensor),
    "RandAugment": resized(T.RandAugment(), to_tensor),
    "noise": pixels(lambda tensor: tensor + 0.05 * torch.randn(3, *SIDES)),
    "NumPy's old generator": pixels(lambda tensor: tensor.flip(2) if np.random.rand() < 0.5 else tensor),  # noqa: NPY002
    "a generator of its own": lambda picture: small(picture).flip(int(OWN.integers(1, 3))),
    "Python's generator": lambda picture: small(picture) + random.random(),
}

REFUSED: dict[str, tuple[Process, str]] = {
    "turned by 3 degrees": (warped(cv2.getRotationMatrix2D((80, 48), 3, 1)), "does not just resize"),
    "turned by 45 degrees": (warped(cv2.getRotationMatrix2D((80, 48), 45, 1)), "does not just resize"),
    "sheared": (warped([[1, 0.1, 0], [0, 1, 0]]), "does not just resize"),
    "barrel": (barrel(0.3), "does not just resize"),
    "perspective": (perspective, "does not just resize"),
    "polar": (polar, "does not just resize"),
    "halves exchanged": (pixels(lambda tensor: tensor.roll(48, 1)), "does not just resize"),
    "wrapped round": (pixels(lambda tensor: tensor.roll((20, 30), (1, 2))), "does not just resize"),
    "columns shuffled": (
        pixels(lambda tensor: tensor[:, :, torch.randperm(160, generator=torch.Generator().manual_seed(0))]),
        "does not just resize",
    ),
    "patches shuffled": (
        pixels(lambda tensor: tensor.reshape(3, 6, 16, 160).flip(1).reshape(3, *SIDES)),
        "does not just resize",
    ),
    "memory read in another order": (
        lambda picture: torch.from_numpy(array(picture).reshape(3, *SIDES)).float(),
        "does not just resize",
    ),
    "channels last": (lambda picture: torch.from_numpy(array(picture)).float(), r"160 x 3 pixels .* \[C, H, W\]"),
    "five crops": (lambda picture: torch.stack(of_crops(picture)), "does not just resize"),
    "five crops as channels": (lambda picture: torch.cat(of_crops(picture)), "does not just resize"),
    "the picture and its mirror image": (
        pixels(lambda tensor: torch.cat([tensor, tensor.flip(2)])),
        "does not just resize",
    ),
    "edges": (sobel, "does not just resize|the same values"),
    "Laplacian": (laplacian, "does not just resize"),
    "Canny": (lambda picture: to_tensor(cv2.Canny(array(picture), 50, 150)), "does not just resize|the same values"),
    "spectrum": (pixels(lambda tensor: torch.fft.fft2(tensor).real), "does not just resize"),
    "power of the spectrum": (pixels(lambda tensor: torch.fft.fft2(tensor).abs()), "does not just resize|same values"),
    "a dark border trimmed": (trimmed(dark=True), "does not just resize"),
    "a light border trimmed": (trimmed(dark=False), "does not just resize"),
    "centred on what is bright": (around_the_brightest, "does not just resize"),
    "the brighter half to the left": (upright_by_brightness, "does not just resize"),
    "constant": (lambda picture: torch.zeros(3, 32, 32), "the same values"),
    "eight by eight pixels": (T.Compose([T.Resize((8, 8)), to_tensor]), "8 x 8 pixels"),
    "looking for a face": (lambda picture: {}["face"], "fails on a test picture .*face"),
}
