"""How processes share a model: devices, precision, sharding, heartbeats, and errors on all of them."""
