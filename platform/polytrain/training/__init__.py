"""What happens in a step and around it: loss and update, metrics, evaluation, checkpoints, the loop."""
