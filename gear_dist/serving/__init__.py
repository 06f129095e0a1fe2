"""A trained pair behind HTTP: batches of many clients' images on Ray Serve, and a page."""
