"""Share a model between processes: devices, precision, sharding, heartbeats, and errors that end all of them."""
