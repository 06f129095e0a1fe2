"""What a trained run is worth, in numbers."""
