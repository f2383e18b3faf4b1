"""The training run: the step, the loop, checkpoints, metrics, and the workdir."""
