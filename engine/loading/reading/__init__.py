"""The files of a model while they are read: how far it is, and reading ahead."""
