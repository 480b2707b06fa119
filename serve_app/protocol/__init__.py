"""The messages between the parts of the graph, failures included."""
