"""Special features of model families and their repositories."""
