"""One training loop for every task: run folders, checkpoints, exact resume, devices, options."""
