"""One metric: a pure function of what a trial measures."""

from torch import Tensor

import hf_cam


@hf_cam.metric("evenness", "evenness", higher_is_better=None, paper="an example; no paper")
def evenness(maps: Tensor) -> Tensor:
    """The share of the map's rows that are the same all along, in [0, 1]."""
    spread = maps.amax(-1) - maps.amin(-1)
    return (spread < 1e-3).to(maps.dtype).mean(-1)
