"""What fits where: GPUs, needs of replicas, and how they are packed."""
