"""What workers need of each other and of whoever starts them."""
