"""The commands `train`, `quickstart` and `store`."""
