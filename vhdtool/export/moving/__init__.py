"""Moving bytes: read plans into sinks, and buffers to whoever digests them."""
