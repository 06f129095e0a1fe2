"""The joint training step on DeepSpeed engines, and the worker around it."""
