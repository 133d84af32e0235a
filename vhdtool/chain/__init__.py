"""Images put together: finding parents, and resolving a guest range through all layers into a read plan."""
