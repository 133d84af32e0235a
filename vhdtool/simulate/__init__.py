"""What a read costs: workloads replayed through a chain, counted; what a merge would change."""
