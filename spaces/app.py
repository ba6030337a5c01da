"""The Space: see any vision model's reasons in the browser. `hf-cam space` starts it locally."""

import contextlib
import os

os.environ.setdefault("HF_HUB_DISABLE_XET", "1")  # its downloads do not hear that a visitor stopped them

with contextlib.suppress(ImportError):
    import spaces  # noqa: F401  (on ZeroGPU it has to come before everything that touches CUDA)

from page import build, serve

demo = build()

if __name__ == "__main__":
    serve(demo)
