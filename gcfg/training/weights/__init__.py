"""What happens to weights at a step: low-rank forms, optimizers, the learning rate, the moving average."""
