"""What concerns the device that tensors lie on."""
