"""Pictures and videos in, pictures out, and the way between the caller's pixels and the model's."""
