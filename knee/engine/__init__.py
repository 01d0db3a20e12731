"""The training loop of all tasks: run folders, checkpoints, exact resuming, devices, options."""
