"""What the commands share: run-time set-up, files, checkpoints, metrics, logging."""
