"""The arguments of the application in the YAML file, parsed strictly."""
