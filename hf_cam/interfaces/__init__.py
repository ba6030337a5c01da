"""The doors: the command, the transformers tasks, the demo and the web page."""
