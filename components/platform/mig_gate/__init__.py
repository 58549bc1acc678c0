"""The controller that keeps pods off a MIG node until its GPUs are divided."""
