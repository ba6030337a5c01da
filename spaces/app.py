"""The Space: what a vision model looked at, in the browser. `hf-cam space` starts it locally."""

import contextlib
import os

os.environ.setdefault("HF_HUB_DISABLE_XET", "1")  # a visitor cannot stop its downloads

with contextlib.suppress(ImportError):
    import spaces  # noqa: F401  (on ZeroGPU it must come before anything that touches CUDA)

if __name__ == "__main__":
    print("Loading torch, transformers and gradio", flush=True)  # noqa: T201 - it takes most of the start

from scratch import home

os.environ["GRADIO_TEMP_DIR"] = str(home() / "uploads")  # gradio's own files go with the server too

from page import build, serve

demo = build()

if __name__ == "__main__":
    serve(demo)
