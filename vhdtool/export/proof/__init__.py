"""What proves an export: digests, manifests, and reading it back."""
