"""Folders and object stores behind one interface, and what is kept in them."""
