"""Image files: checked, resized, re-encoded."""
