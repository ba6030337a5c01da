"""A transformers model of a type that hf-cam does not know, with an output that no head of its own reads."""

from dataclasses import dataclass

from torch import FloatTensor, Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput


class StripesConfig(PretrainedConfig):
    """A tiny network for pictures of `image_size`."""

    model_type = "stripes"

    def __init__(self, image_size: tuple[int, int] = (32, 48), channels: int = 8, **others: object) -> None:
        super().__init__(**others)
        self.image_size, self.channels = image_size, channels


@dataclass
class StripesOutput(ModelOutput):
    """How strongly the picture is striped along its rows and along its columns, `[B, 2]`."""

    stripes: FloatTensor | None = None


class StripesModel(PreTrainedModel):
    """Two convolutions, a mean and a linear layer."""

    config_class = StripesConfig
    main_input_name = "pixel_values"

    def __init__(self, config: StripesConfig) -> None:
        super().__init__(config)
        self.cut = nn.Conv2d(3, config.channels, 4, 4)
        self.body = nn.Sequential(nn.ReLU(), nn.Conv2d(config.channels, config.channels, 3, padding=1), nn.ReLU())
        self.read = nn.Linear(config.channels, 2)
        self.post_init()

    def forward(self, pixel_values: Tensor) -> StripesOutput:
        """From `[B, 3, H, W]`."""
        return StripesOutput(stripes=self.read(self.body(self.cut(pixel_values)).mean((2, 3))))
