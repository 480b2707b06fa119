"""Where it runs: hardware check, planner and cluster manifests."""
