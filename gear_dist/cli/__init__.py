"""The commands of `gear-dist`: one module each; the work is done in the other packages."""
