"""What an object store must do, tried on any store."""
