"""From a plan to published shards."""
