"""Image files: checked, resized, encoded anew."""
