"""The commands `shard`, `verify`, `repair`, `stats`, `preview` and `sample-corpus`."""
