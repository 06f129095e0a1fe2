"""Many samples: tars of PNG and ADM's npz, by any number of workers, through any kill."""
