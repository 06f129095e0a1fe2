"""Training on Ray: attempts, the thread beside them, failures, capacity."""
