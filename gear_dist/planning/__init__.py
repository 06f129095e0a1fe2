"""What a run will cost: memory, communication and time, counted without a GPU."""
