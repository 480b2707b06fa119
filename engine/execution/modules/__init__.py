"""What stands in the place of modules of a model: packed layers, experts."""
