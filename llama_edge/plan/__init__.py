"""What a model will take and give on a device, estimated from its config alone; nothing is run."""
