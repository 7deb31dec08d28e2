"""The program: configuration, the training step, the loop, checkpoints and the command lines."""
