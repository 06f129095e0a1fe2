"""What a run leaves behind: its folder, its lock, its environment, its records."""
