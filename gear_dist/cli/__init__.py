"""The commands of `gear-dist`: one module each, over the rooms that do the work."""
