"""What a run is: config to objects, workdir, checkpoints, devices, log, and the loop from start to `results.json`."""
