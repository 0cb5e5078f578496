"""What a model will take and give on a device, reckoned from its config alone; nothing is run."""
