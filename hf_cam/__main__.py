"""`python -m hf_cam` is the command `hf-cam`."""

from hf_cam.interfaces.cli import main

raise SystemExit(main())
